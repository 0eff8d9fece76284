"""`--attention NAME` in the networks of ResNet-18: a step of training changes the block, a test runs."""

import copy

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmattn.blocks import AttentionBlock
from mmattn.config.leaves import replace_type
from mmattn.config.load import load_config
from tests.conftest import ROOT

NAMES = ('eca', 'coord', 'ema', 'triplet', 'simam', 'lsk', 'lska', 'mhsa', 'gate')
DETECTORS = ('retinanet_r18_bccd', 'mask_rcnn_r18_dsb2018')
NETWORKS = (*DETECTORS, 'ccnet_r18_street')
SIZES = ((3, 64, 96), (3, 96, 64))


def batch(config):
    """Two images with objects, or with labels."""
    if config in DETECTORS:
        data = demo_mm_inputs(
            2, list(SIZES), num_items=[2, 3], num_classes=2, with_mask='mask' in config
        )
        for sample in data['data_samples']:
            sample.gt_instances.labels.zero_()  # of the first class, as DSB 2018 has one
        return data
    labels = torch.randint(0, 19, (2, 1, 64, 96))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=v), metainfo={}) for v in labels]
    for sample in samples:
        sample.set_metainfo(dict(ori_shape=(64, 96), img_shape=(64, 96), pad_shape=(64, 96)))
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in samples]
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('config', NETWORKS)
def test_a_step_and_a_test(config, name):
    scope = 'mmdet' if config in DETECTORS else 'mmseg'
    options = {'model.backbone.init_cfg': None} if config in DETECTORS else {}
    cfg = load_config(ROOT / 'configs' / f'{config}.py', options, attention=name).model
    replace_type(cfg, 'SyncBN', 'BN')
    init_default_scope(scope)
    model = MODELS.build(ConfigDict(cfg))
    model.init_weights()
    blocks = {k: m for k, m in model.named_modules() if isinstance(m, AttentionBlock)}
    blocks = {k: m for k, m in blocks.items() if not k.startswith('decode_head')}  # the head's own
    assert blocks
    before = copy.deepcopy({path: block.state_dict() for path, block in blocks.items()})
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):  # behind a factor of 0 weights move at the second step
        data = model.data_preprocessor(copy.deepcopy(batch(config)), True)
        loss, logged = model.parse_losses(model(**data, mode='loss'))
        assert all(value.isfinite().all() for value in logged.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for path, block in blocks.items():
        for key, value in block.named_parameters():
            assert value.grad is not None and value.grad.isfinite().all(), f'{path}.{key}'
        state = block.state_dict()
        assert any(not torch.equal(before[path][k], v) for k, v in state.items()), path
    model.eval()
    with torch.no_grad():
        samples = model.test_step(batch(config))
    assert len(samples) == 2
