"""Published weights of MMDetection: they fit our configs, and the index has their addresses."""

from pathlib import Path

import mmdet
import pytest
import torch
import yaml
from mmdet.registry import MODELS as DET_MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmattn.checkpoint.load import load_initial_weights, load_weights
from mmattn.config.index import find_config, find_model, list_models
from mmattn.engine.network import build_network
from mmattn.errors import CheckpointError

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
NAMES = {
    'faster_rcnn_r50_coco': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
    'faster_rcnn_r101_coco': 'faster_rcnn/faster-rcnn_r101_fpn_1x_coco',
    'mask_rcnn_r50_coco': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
    'mask_rcnn_r101_coco': 'mask_rcnn/mask-rcnn_r101_fpn_1x_coco',
    'retinanet_r50_coco': 'retinanet/retinanet_r50_fpn_1x_coco',
    'retinanet_r101_coco': 'retinanet/retinanet_r101_fpn_1x_coco',
    'mask_rcnn_r50_gc_coco': 'gcnet/mask-rcnn_r50-gcb-r16-c3-c5_fpn_1x_coco',
    'mask_rcnn_r50_gc_r4_coco': 'gcnet/mask-rcnn_r50-gcb-r4-c3-c5_fpn_1x_coco',
    'mask_rcnn_r101_gc_coco': 'gcnet/mask-rcnn_r101-gcb-r16-c3-c5_fpn_1x_coco',
    'mask_rcnn_r101_gc_r4_coco': 'gcnet/mask-rcnn_r101-gcb-r4-c3-c5_fpn_1x_coco',
    'faster_rcnn_r50_dcn_coco': 'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco',
    'faster_rcnn_r101_dcn_coco': 'dcn/faster-rcnn_r101-dconv-c3-c5_fpn_1x_coco',
    'mask_rcnn_r50_dcn_coco': 'dcn/mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco',
    'mask_rcnn_r101_dcn_coco': 'dcn/mask-rcnn_r101-dconv-c3-c5_fpn_1x_coco',
    'faster_rcnn_r50_dcnv2_coco': 'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco',
    'mask_rcnn_r50_dcnv2_coco': 'dcnv2/mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco',
    'mask_rcnn_r50_cityscapes': 'cityscapes/mask-rcnn_r50_fpn_1x_cityscapes',
}


def path_of(address):
    return address.split('/', 3)[3]


def test_every_detector_with_weights_is_compared():
    detectors = {name for name in list_models(weights=True) if 'rcnn' in name or 'retina' in name}
    others = {name for name in detectors if 'openmmlab' in (find_model(name).weights or '')}
    assert others == set(NAMES)
    assert len(list_models(weights=True)) >= 60


@pytest.mark.parametrize('name', [n for n in NAMES if n.endswith('coco')])
def test_addresses_and_figures_are_those_of_mmdet(name):
    folder, _, config = NAMES[name].partition('/')
    theirs = {
        Path(row['Config']).stem: row
        for row in yaml.safe_load((CONFIGS / folder / 'metafile.yml').read_text())['Models']
    }[config]
    assert path_of(find_model(name).weights) == path_of(theirs['Weights'])
    rows = yaml.safe_load(find_config(name).with_name('metafile.yml').read_text())['Models']
    ours = next(row for row in rows if row['Name'] == name)
    assert not ours['Results']
    for result in theirs['Results']:
        metrics = result['Metrics'].items()
        assert any(metrics <= published.items() for published in ours['Published'])


@pytest.mark.parametrize('name', NAMES)
def test_weights_fit_our_config(name):
    """Keys and shapes of mmdet's network and of ours are equal, those of 2020 among them."""
    with torch.device('meta'):
        ours, _ = build_network(find_config(name))
        with DefaultScope.overwrite_default_scope('mmdet'):
            cfg = Config.fromfile(CONFIGS / f'{NAMES[name]}.py').model
            cfg.backbone.pop('init_cfg')
            theirs = DET_MODELS.build(cfg)
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize('name', ['dcn', 'dcnv2'])
@pytest.mark.parametrize('part', ['', 'backbone.'])
def test_names_of_2020(name, part):
    """Deformable convolutions had their offsets next to them, not inside."""
    model = build_network(find_config(f'retinanet_r18_{name}_bccd'))[0]
    for value in model.state_dict().values():
        torch.nn.init.normal_(value) if value.is_floating_point() else value.random_(0, 9)
    wanted = {k: v.clone() for k, v in model.state_dict().items()}
    old = {
        key.replace('.conv_offset.', '_offset.').removeprefix(part): value
        for key, value in wanted.items()
        if key.startswith(part)
    }
    assert sum('conv2_offset' in key for key in old) == 12
    other = build_network(find_config(f'retinanet_r18_{name}_bccd'))[0]
    if part:
        load_initial_weights(other, old, 'old.pth', partial=True)
    else:
        load_weights(other, old, 'old.pth')
        plain = build_network(find_config('retinanet_r18_bccd'))[0]
        with pytest.raises(CheckpointError, match='conv2_offset'):
            load_weights(plain, old, 'old.pth')
    state = other.state_dict()
    assert all(torch.equal(state[k], v) for k, v in wanted.items() if k.startswith(part))
