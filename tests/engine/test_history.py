"""Histories equal mmengine's, and take the same time for each update."""

import copy
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from mmattn.engine import history, late_values
from mmattn.engine.history import GrowingHistory, Histories, log_number


@pytest.mark.parametrize('start', [(), (1,), (1.5, 2)])
@pytest.mark.parametrize('limit', [3, 10, 1000])
def test_equal_to_mmengine(start, limit, monkeypatch):
    monkeypatch.setattr(history, '_ROOM', 4)
    ours, theirs = (
        cls(list(start), [1] * len(start), limit) for cls in (GrowingHistory, HistoryBuffer)
    )
    for step in range(40):
        value, count = (step if step < 5 else step / 3), 1 + step % 2
        for buffer in ours, theirs:
            buffer.update(value, count)
        for name in 'min', 'max', 'mean':
            for window in None, 1, 4:
                found, wanted = (b.statistics(name, window) for b in (ours, theirs))
                assert found == wanted and found.dtype == wanted.dtype
        assert ours.current() == theirs.current()
        for found, wanted in zip(ours.data, theirs.data, strict=True):
            assert found.dtype == wanted.dtype and np.array_equal(found, wanted)
    for twin in copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)):
        twin.update(7.5)
        assert twin.current() == 7.5 and ours.current() != 7.5
        assert len(twin.data[0]) == min(len(ours.data[0]) + 1, limit)


@pytest.mark.parametrize('start', [(), (1,), (1.5, 2)])
def test_counts_of_1_take_no_memory_until_there_is_another(start, monkeypatch):
    monkeypatch.setattr(history, '_ROOM', 4)
    ours, theirs = (cls(list(start), [1] * len(start)) for cls in (GrowingHistory, HistoryBuffer))
    for step in range(30):
        for buffer in ours, theirs:
            buffer.update(step / 3, 1 if step < 20 else 0.5)
        assert ours._counts.size == (1 if step < 20 else len(ours._values))
        for found, wanted in zip(ours.data, theirs.data, strict=True):
            assert found.dtype == wanted.dtype and np.array_equal(found, wanted)
        assert ours.mean() == theirs.mean() and ours.mean(4) == theirs.mean(4)


def test_arrays_are_copied_ever_more_seldom(monkeypatch):
    copies, allocate = [], np.empty

    def count(size, dtype=float):
        copies.append(size)
        return allocate(size, dtype)

    monkeypatch.setattr(history.np, 'empty', count)
    buffer = GrowingHistory([0.0], [1], max_length=5000)
    for step in range(20_000):
        buffer.update(float(step))
    assert len(copies) < 30 and max(copies) <= 2 * 5000
    assert buffer.data[0][0] == 15_000 and buffer.current() == 19_999


@pytest.mark.parametrize('value', ['1', None, [1.0]])
def test_what_is_no_number_is_named(value):
    with pytest.raises(TypeError, match='not a number'):
        GrowingHistory().update(value)
    with pytest.raises(TypeError, match='not a number'):
        GrowingHistory().update(1.0, value)


def test_a_hub_holds_them():
    hub = MessageHub('test_history')
    hub._log_scalars = Histories()
    for step in range(3):
        hub.update_scalar('train/loss', step / 2)
    found = hub.get_scalar('train/loss')
    assert type(found) is GrowingHistory and found.mean() == 0.5
    assert type(hub.log_scalars['train/loss']) is GrowingHistory


def test_numbers_of_a_device_are_read_when_they_are_asked_for(monkeypatch):
    reads, to_list = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, 'tolist', lambda t: reads.append(len(t)) or to_list(t))
    monkeypatch.setattr(late_values, '_READ_AT_ONCE', ())
    hub = MessageHub('test_later')
    hub._log_scalars = Histories()
    for step in range(6):
        log_number(hub, 'train/loss', torch.tensor([step / 4]))  # of one element, as accuracies are
    hub.update_scalar('train/time', 1.0)
    assert not reads
    history = hub.get_scalar('train/loss')
    assert history.mean(3) == 1.0 and history.current() == 1.25 and reads == [6]
    history.update_later(torch.tensor(3))
    history.update(0.5)  # in the order in which they came
    assert list(history.data[0][-2:]) == [3.0, 0.5] and list(history.data[1]) == 8 * [1]
    for step in range(2500):
        history.update_later(torch.tensor(float(step)))
    assert reads[2:] == [1000, 1000] and len(history.data[0]) == 2508
