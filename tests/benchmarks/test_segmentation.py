"""The benchmark of what tests of segmentors cost: equality first, and options that fit."""

import json

import numpy as np
import pytest

from mmattn.benchmarks import segmentation as benchmark
from tools import benchmark as tool


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(benchmark, '_SIZE', (64, 128))
    windows = dict(mode='slide', crop_size=(48, 48), stride=(32, 32))
    monkeypatch.setattr(benchmark, '_WINDOWS', windows)


def test_all_is_equal_and_measured(tmp_path, capsys):
    out = tmp_path / 'figures.json'
    assert tool.main(['--segmentation', '--rounds', '1', '--json', str(out)]) == 0
    rows = json.loads(out.read_text())['rows']
    assert len(rows) == len({row['task'] for row in rows}) == 8
    for row in rows:
        assert row['ours'] > 0 and row['mmseg'] > 0
        assert (row['peak'] is None) == ('intersection' in row['task'])
        assert row['peak'] is None or 0 < row['peak'] < row['mmseg_peak']
    shown = capsys.readouterr().out
    assert '128x64, best of 1 rounds' in shown and 'slide inference, 150 classes' in shown


@pytest.mark.parametrize('name', ['slide_inference', 'postprocess_result', 'areas'])
def test_what_differs_is_not_timed(name, monkeypatch):
    def slide(network, images, metas):
        return right(network, images, metas).nextafter(images.new_tensor(9))

    def postprocess(network, logits, samples):
        return right(network, logits + 1e-6, samples)

    def areas(matrix):
        return [a + np.eye(len(a), dtype=a.dtype)[3] for a in right(matrix)]

    if name == 'areas':
        right = benchmark.areas
        monkeypatch.setattr(benchmark, name, areas)
    else:
        right = getattr(benchmark._Ours, name)
        wrong = dict(slide_inference=slide, postprocess_result=postprocess)[name]
        monkeypatch.setattr(benchmark._Ours, name, wrong)
    with pytest.raises(benchmark.ResultsDiffer, match='mmattn differs from MMSegmentation'):
        benchmark.report_segmentation(1)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--plugins', 'SE'], '--plugins has sizes of its own: leave pattern and --size out'),
        (['--plugins', '--size', '1', '32', '4', '4'], '--plugins has sizes of its own'),
        (['--segmentation', 'SE'], '--segmentation has sizes of its own'),
        (
            ['SE', '--segmentation', '--size', '1', '32', '4', '4'],
            '--segmentation has sizes of its',
        ),
        (['--plugins', '--segmentation'], 'not allowed with argument'),
        (['--segmentation', '--rounds', '0'], '--rounds 0: allowed are numbers from 1'),
        (['--plugins', '--rounds', '-1'], '--rounds -1: allowed are numbers from 1'),
    ],
)
def test_options_that_do_not_fit(arguments, message, capsys):
    with pytest.raises(SystemExit) as raised:
        tool.main(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
