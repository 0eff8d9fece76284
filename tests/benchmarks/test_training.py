"""The benchmark of training steps: both sides train the same network, by parts."""

import json

import pytest
from mmengine.registry import MODELS, init_default_scope

from mmattn.benchmarks import step_parts
from mmattn.benchmarks.stock_config import stock_config
from mmattn.benchmarks.training import report_training
from mmattn.config.load import load_config
from mmattn.engine.network import drop_pretrained
from mmattn.engine.run_config import replace_sync_bn
from mmattn.errors import UsageError
from tests.engine.killing import SMALL
from tests.test_tools import flags
from tools import benchmark as tool


def test_both_sides_train_and_are_timed(tiny, tmp_path, capsys):
    out = tmp_path / 'figures.json'
    options = flags(tiny | SMALL)
    arguments = ['--training', 'configs/ccnet_r18_street.py', '--rounds', '2', '--json', str(out)]
    assert tool.main([*arguments, *options]) == 0
    content = json.loads(out.read_text())
    stock, ours = content['sides']
    assert (stock['side'], ours['side']) == ('mmseg', 'ours') and stock['batch'] == 2
    for side in stock, ours:
        assert len(side['steps']) == 4 and side['peak'] > 1e6
        assert all(step[part] > 0 for step in side['steps'] for part in step)
    shown = capsys.readouterr().out
    for name in 'data', 'forward', 'backward', 'optimizer', 'hooks', 'whole', 'images/s', 'peak MB':
        assert f'\n{name} ' in shown
    assert 'ours: middle half of the ratios' in shown


def test_generated_images_and_blocks_of_a_frozen_stage(capsys):
    options = {
        'model.train_cfg.rpn_proposal.max_per_img': 20,
        'model.train_cfg.rcnn.sampler.num': 16,
    }
    arguments = dict(attention='se', options=options, size=(64, 96), batch=1)
    stock, ours = report_training('configs/mask_rcnn_r50_coco.py', 1, **arguments)
    assert (stock.side, ours.side) == ('mmdet', 'ours') and len(ours.steps) == 2
    assert ours.peak < stock.peak


@pytest.mark.parametrize(
    'name, attention',
    [('ccnet_r18_street', None), ('ann_r18_street', None), ('mask_rcnn_r18_street', None),
     ('mask_rcnn_r50_coco', 'cbam')],
)  # fmt: skip
def test_the_stock_network_is_the_same(name, attention):
    cfg = load_config(f'configs/{name}.py', {'model.backbone.init_cfg': None}, attention)
    init_default_scope(cfg.default_scope)
    counts = []
    for config in stock_config(cfg), cfg:
        drop_pretrained(config.model)
        config.launcher = 'none'
        replace_sync_bn(config)
        network = MODELS.build(config.model)
        counts.append(sorted(tuple(p.shape) for p in network.parameters()))
        assert type(network).__module__.startswith('mmattn') == (config is cfg)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    'name, attention, message',
    [
        ('attention_unet_street', None, 'mmattn.AttentionUNet has no counterpart'),
        (
            'ann_r50_512x1024_40k_cityscapes',
            'nl',
            'MMCV puts plugins after convolutions of residual',
        ),
        ('fcn_r18_street', 'se', 'ResNet-18 has blocks of two convolutions, which take no plugins'),
    ],
)
def test_what_cannot_be_compared(name, attention, message):
    with pytest.raises(UsageError, match=message):
        stock_config(load_config(f'configs/{name}.py', None, attention))


def test_parts_of_a_step_are_equal_and_timed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step_parts, '_LOSSES', ((3, (1, 4, 6), (16, 24)),))
    monkeypatch.setattr(step_parts, '_STEPS', 2000)
    monkeypatch.setattr(step_parts, '_GATES', ('se',))
    monkeypatch.setattr(step_parts, '_DETECTOR', 'mask_rcnn_r18_street')
    monkeypatch.setattr(step_parts, '_IMAGE', (64, 96))
    monkeypatch.setattr(step_parts, '_SEGMENTOR', 'ccnet_r18_street')
    monkeypatch.setattr(step_parts, '_SCENES', 2)
    monkeypatch.setattr(step_parts, '_SCENE', (512, 256))
    out = tmp_path / 'figures.json'
    assert tool.main(['--step', '--rounds', '1', '--json', str(out)]) == 0
    rows = {row['task']: row for row in json.loads(out.read_text())['rows']}
    assert len(rows) == 5 and all(row['ours'] > 0 and row['theirs'] > 0 for row in rows.values())
    gates = next(row for task, row in rows.items() if '+ se' in task)
    plain = rows['the same without blocks']
    assert plain['memory'] <= gates['memory'] < gates['their_memory']
    shown = capsys.readouterr().out
    assert '10 logged numbers at step 2,000' in shown and 'loss and accuracy, 3 classes' in shown


def test_options_of_the_benchmark_of_training():
    assert tool.main(['--step', 'nothing']) == 2
    for arguments in (
        ['SE', '--training', 'x.py'],
        ['--step', '--device', 'cuda'],
        ['SE', '--attention', 'cbam'],
        ['--step', '--with', 'compile'],
        ['--step', '--threads', '1'],
    ):
        with pytest.raises(SystemExit):
            tool.main(arguments)
