"""What a long training holds is measured, and what grows is named."""

import json
import os

import pytest

from mmattn.errors import UsageError
from mmattn.testing import soak as module
from mmattn.testing.soak import ResourceGrowth, check_growth, soak_test
from tests.engine.killing import CONFIG, SMALL


def lines(**of_step):
    flat = dict(memory=700, workers=900, files=30, threads=6, shared=0, checkpoint=2.5)
    found = [dict(flat, iteration=20 * i) for i in range(1, 101)]
    for name, value in of_step.items():
        for line in found:
            line[name] = value(line['iteration'])
    return found


def test_what_does_not_grow_passes():
    said = []
    check_growth(lines(memory=lambda i: (700 if i > 900 else i) + 0.5 * i / 1000), said.append)
    assert said[:2] == [
        'iterations 1020 to 2000, 50 measurements',
        'memory: 700.5 to 701.0 MB, +0.50 MB per 1000 iterations',
    ]
    check_growth(lines(files=lambda i: 30 + i % 3, checkpoint=lambda i: None), said.append)


@pytest.mark.parametrize(
    'name, value',
    [
        ('memory', lambda i: 700 + 1.1 * i / 1000),
        ('workers', lambda i: 700 + 2 * i / 1000),
        ('files', lambda i: 30 + i // 1900),
        ('threads', lambda i: 6 + i // 1900),
        ('shared', lambda i: i // 1000),
        ('checkpoint', lambda i: 2.5 + i / 20_000),
    ],
)
def test_what_grows_is_named(name, value):
    with pytest.raises(ResourceGrowth, match=f'^{name} grew with the training'):
        check_growth(lines(**{name: value}), lambda said: None)


@pytest.mark.parametrize('count', [0, 5])
def test_too_few_measurements(count):
    with pytest.raises(
        UsageError, match=f'{count} measurements in the second half, .* train longer'
    ):
        check_growth(lines()[: 2 * count])


def test_what_is_measured(tiny, tmp_path, monkeypatch):
    judged = []
    monkeypatch.setattr(module, 'check_growth', lambda found, say: judged.extend(found))
    options = SMALL | tiny | {'train_dataloader.num_workers': 1, 'train_cfg.val_interval': 99}
    soak_test(CONFIG, tmp_path, options, interval=2)
    assert [line['iteration'] for line in judged] == [2, 4]
    last = judged[-1]
    assert last['memory'] == pytest.approx(module._memory(os.getpid()), rel=0.3)
    assert last['workers'] > 100 and last['files'] > 3 and last['threads'] >= 1
    size = (tmp_path / 'iter_4.pth').stat().st_size / 1e6
    assert last['checkpoint'] == pytest.approx(size, rel=0.01)
    assert json.loads((tmp_path / 'footprint.jsonl').read_text().splitlines()[1]) == last
