import copy
import pickle

import pytest
import torch
from torch import nn

from mmattn import CBAM, PAM, SE, CrissCrossAttention
from mmattn.visualization import record
from tests.conftest import randomise


def test_paths_names_and_one_map_a_use():
    shared = SE(16, reduction=4)
    model = nn.Sequential(shared, nn.ModuleDict(dict(cbam=CBAM(16))).cbam, shared)
    with record(model) as maps:
        model(torch.randn(2, 16, 5, 7))
        model(torch.randn(1, 16, 3, 3))
    assert set(maps) == {'0', '1'}
    assert [tuple(m.shape) for m in maps['0']['channel']] == [(2, 16), (2, 16), (1, 16), (1, 16)]
    assert [tuple(m.shape) for m in maps['1']['spatial']] == [(2, 1, 5, 7), (1, 1, 3, 3)]


def test_copies_made_meanwhile_are_recorded_until_the_end():
    model, x = nn.Sequential(SE(16, reduction=4)), torch.randn(2, 16, 5, 7)
    with record(model) as maps:
        copied = copy.deepcopy(model)
        copied(x)
        stored = pickle.loads(pickle.dumps(model))
        stored(x)
        with pytest.raises(ValueError, match='is being recorded already'), record(copied):
            pass
    assert len(maps['0']['channel']) == 1
    copied(x)
    assert len(maps['0']['channel']) == 1
    with record(copied) as others:
        copied(x)
    assert len(others['0']['channel']) == 1 == len(maps['0']['channel'])


def test_queries_are_fractions_of_height_and_width():
    block = randomise(PAM(8)).double()
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    with record(block, [(0, 0), (0.5, 0.99)]) as maps:
        block(x)
    (found,) = maps['']['pairwise']
    q, k = (conv(x).flatten(2) for conv in (block.query_project, block.key_project))
    every = (q.mT @ k).softmax(-1)  # (N, P, P)
    torch.testing.assert_close(found.flatten(2), every[:, [0, 2 * 7 + 6]])


def test_recurrence_gives_a_map_a_round_on_row_and_column():
    block = randomise(CrissCrossAttention(8, recurrence=2))
    with record(block, [(0.5, 0.5)]) as maps:
        block(torch.randn(1, 8, 4, 6))
    one, two = maps['']['pairwise']
    assert not torch.equal(one, two)
    for found in one[0, 0], two[0, 0]:
        assert (found > 0).sum() == 4 + 6 - 1 and found[2].min() > 0 and found[:, 3].min() > 0


def test_training_statistics_are_updated_once():
    block, twin = CBAM(16).train(), CBAM(16).train()
    x = torch.randn(2, 16, 5, 7)
    twin.load_state_dict(block.state_dict())
    with record(block):
        block(x)
    twin(x)
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in block.state_dict().items())


def test_maps_hold_no_graph_and_gradients_flow_as_ever():
    block = randomise(SE(16))
    with record(block) as maps:
        block(torch.randn(1, 16, 2, 2)).sum().backward()
    assert not maps['']['channel'][0].requires_grad and block.fc1.weight.grad is not None


def test_it_ends_with_the_context_after_an_error_too():
    block = SE(16)
    with pytest.raises(KeyError), record(block):
        raise KeyError
    assert block._recorder is None


@pytest.mark.parametrize(
    'model, queries, message',
    [
        (nn.ReLU(), [(0, 0)], 'no block of mmattn in ReLU'),
        (SE(16), [], 'queries='),
        (SE(16), [(0.5, 1.0)], r'queries=.*allowed \(row, column\) in \[0, 1\)'),
    ],
)
def test_refused(model, queries, message):
    with pytest.raises(ValueError, match=f'record: .*{message}'), record(model, queries):
        pass


def test_recording_twice_at_once_is_refused():
    block = SE(16)
    with record(block), pytest.raises(ValueError, match='recorded already'), record(block):
        pass
