"""The original packages train networks with our blocks, by their tools and by ours."""

import json
from importlib.metadata import version

import pytest
import torch

from mmattn import compat
from tests.openmmlab.runs import call, mmattn, shipped, weights, write_config

PLUGIN = "dict(cfg=dict(type='mmattn.CBAM'), position='after_conv3')"
MODELS = {
    # the backbone of the stock class takes the block, in the grammar of mmcv
    ('mmdet', 'backbone'): f'backbone=dict(init_cfg=None, plugins=[{PLUGIN}]),',
    ('mmseg', 'backbone'): f'backbone=dict(norm_cfg=norm_cfg, plugins=[{PLUGIN}]),',
    # our class takes it: in any backbone
    ('mmdet', 'network'): f"type='mmattn.MaskRCNN', backbone=dict(init_cfg=None), plugins=[{PLUGIN}],",
    ('mmseg', 'network'): f"type='mmattn.EncoderDecoder', backbone=dict(norm_cfg=norm_cfg), plugins=[{PLUGIN}],",
}  # fmt: skip


def test_the_packages_are_the_original_ones():
    wanted = dict(
        mmcv='2.1.0', mmdet='3.3.0', mmsegmentation='1.2.2', mmengine='0.10.7', numpy='1.26.4'
    )
    assert {name: version(name) for name in wanted} == wanted
    assert torch.__version__.startswith('2.1.2')
    assert compat.installation_problem() is None


@pytest.mark.parametrize('package, place', MODELS)
def test_their_tool_trains_two_steps(package, place, street, tmp_path):
    config = write_config(package, MODELS[package, place], street, tmp_path)
    work = tmp_path / 'work'
    said = call(shipped(package) / 'tools' / 'train.py', config, '--work-dir', work)
    assert ('bbox_mAP' if package == 'mmdet' else 'mIoU') in said
    states = weights(work)
    block = [name for name in states.second if '.cbam' in name and name.endswith('weight')]
    assert {name.partition('.layer')[2][0] for name in block} == set('1234')
    changed = [name for name in block if not torch.equal(states.first[name], states.second[name])]
    # mmdet freezes the first stage of its ResNet, and with it the blocks there
    assert len(changed) > len(block) / 2
    assert call(
        shipped(package) / 'tools' / 'test.py', config, work / 'iter_2.pth', '--work-dir', work
    )


@pytest.mark.parametrize('config', ['mask_rcnn_r18_street', 'ccnet_r18_street'])
def test_our_tools_train_test_and_resume(config, street, tmp_path):
    work = tmp_path / 'work'
    said = mmattn('train', config, '--attention', 'cbam', '--work-dir', work, root=street)
    assert 'backbone.layer1.0.cbam' in said and 'identity now' in said
    state = torch.load(work / 'iter_4.pth', map_location='cpu')['state_dict']
    assert sum('.cbam.' in name for name in state) > 0
    mmattn('test', config, work / 'iter_4.pth', '--work-dir', work, root=street)
    metrics = json.loads((work / 'metrics' / 'iter_4.json').read_text())['metrics']
    assert any(name.endswith(('mIoU', 'bbox_mAP')) for name in metrics)
    once_more = 'train', config, '--work-dir', tmp_path / 'resumed'
    mmattn(*once_more, '--resume', work / 'iter_2.pth', root=street)
    resumed = torch.load(tmp_path / 'resumed' / 'iter_4.pth', map_location='cpu')['state_dict']
    assert all(torch.equal(resumed[name], value) for name, value in state.items())


def test_what_needs_a_newer_torch_is_refused_in_one_sentence(street, tmp_path):
    said = mmattn('export', 'ccnet_r18_street', '--format', 'torch', root=street, code=2)
    said += mmattn(
        'train', 'ccnet_r18_street', '--work-dir', tmp_path, root=street, code=2, compile=True
    )
    export, compiled = [line for line in said.splitlines() if line.startswith('error: ')]
    assert 'torch 2.1.2' in export and 'torch 2.13' in export
    assert 'torch 2.1.2' in compiled and 'torch 2.4 and newer' in compiled
