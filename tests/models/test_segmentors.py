"""Whole segmentors against MMSegmentation's with the same state dict, on a large image."""

import logging

import cv2
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmattn.config.leaves import replace_type
from mmattn.config.load import load_config
from mmattn.datasets.street import generate
from mmattn.plugins import named_plugins
from tests.conftest import ROOT, randomise

KINDS = {'cbam': {'CBAM'}, 'gc,se': {'ContextBlock', 'SE'}, 'sk': {'SKConv2d'}}
SLIDE = dict(mode='slide', crop_size=(640, 1280), stride=(384, 768))


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    """A generated scene of 2048x1024, (3, H, W) as it leaves the loader."""
    root = tmp_path_factory.mktemp('large') / 'street'
    generate(root, images=dict(train=0, val=1, test=0), size=(2048, 1024))
    return torch.from_numpy(cv2.imread(str(next(root.rglob('*_leftImg8bit.png'))))).permute(2, 0, 1)


def pair(model, image):
    """Ours and MMSegmentation's of one state dict: all moved, every class somewhere the largest."""
    init_default_scope('mmseg')
    cfg = load_config(ROOT / 'configs' / f'{model}_r18_street.py').model
    replace_type(cfg, 'SyncBN', 'BN')
    ours = MODELS.build(ConfigDict(cfg)).eval()
    ours.init_weights()
    with torch.no_grad():
        for key, value in ours.named_parameters():
            if key.startswith('decode_head'):
                value += 0.1 * torch.randn_like(value)
        small = ours.data_preprocessor(dict(inputs=[image[:, ::4, ::4]]))['inputs']
        logits = ours(small)[0] if model == 'danet' else ours(small)
        scale = 1 / logits.std((0, 2, 3))
        last = ours.decode_head.conv_seg
        last.weight *= scale[:, None, None, None]
        last.bias.copy_((last.bias - logits.mean((0, 2, 3))) * scale)
    for part in cfg, cfg.decode_head:
        part.type = part.type.removeprefix('mmattn.')
    theirs = MODELS.build(cfg).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for segmentor, home in (ours, 'mmattn.'), (theirs, 'mmseg.'):
        for module in segmentor, segmentor.decode_head:
            assert type(module).__module__.startswith(home)
    return ours, theirs


@pytest.mark.parametrize('model', ['ccnet', 'ann', 'danet', 'nonlocal', 'gcnet'])
def test_equal_maps(model, image):
    if model != 'ccnet':  # one at full size
        image = image[:, ::2, ::2]
    ours, theirs = pair(model, image)
    # windows are those of one class for all networks, which test_slide_inference tries on its own
    for test_cfg in [dict(mode='whole')] + [SLIDE] * (model == 'ccnet'):
        found = []
        for segmentor in ours, theirs:
            segmentor.test_cfg = ConfigDict(test_cfg)
            with torch.no_grad():
                (sample,) = segmentor.test_step(dict(inputs=[image], data_samples=None))
            found.append((sample.pred_sem_seg.data, sample.seg_logits.data))
        (mine, logits), (other, expected) = found
        assert mine.shape == (1, *image.shape[1:]) and len(mine.unique()) > 9
        noise = 1e-5 * expected.abs().max()
        torch.testing.assert_close(logits, expected, rtol=0, atol=noise)
        best, second = expected.topk(2, 0).values
        clear = (best - second > noise)[None]  # of many pixels some are ties in fp32
        assert clear.float().mean() > 0.999
        assert torch.equal(mine[clear], other[clear]) and (mine != other).sum() <= 20


@pytest.mark.parametrize('mean_of_labelled', [False, True])
@pytest.mark.parametrize('sampler', [None, dict(type='OHEMPixelSampler', thresh=0.7, min_kept=9)])
def test_crops_of_ignored_pixels_teach_nothing_and_are_counted(sampler, mean_of_labelled):
    init_default_scope('mmseg')
    cfg = load_config(ROOT / 'configs/ccnet_r18_street.py').model
    replace_type(cfg, 'SyncBN', 'BN')
    cfg.decode_head.sampler = sampler
    for head in cfg.decode_head, cfg.auxiliary_head:
        head.loss_decode.avg_non_ignore = mean_of_labelled
    model = MODELS.build(ConfigDict(cfg)).train()
    image = torch.randn(2, 3, 64, 96)

    def samples(first, second):
        values = torch.full((2, 1, 64, 96), 255)
        values[0, :, 8:40], values[1, :, 8:40] = first, second
        metas = [dict(img_path=f'{name}.png', img_shape=(64, 96)) for name in 'ab']
        return [
            SegDataSample(gt_sem_seg=PixelData(data=v), metainfo=m) for v, m in zip(values, metas)
        ]

    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = MMLogger.get_instance('crops')
    logger.addHandler(handler)
    assert all(v > 0 for k, v in model.loss(image, samples(3, 255)).items() if 'loss' in k)
    assert said == ['no labelled pixel in 1 of 2 crops so far, now of b.png: no loss from it']
    losses = model.loss(image, samples(255, 255))
    assert [float(v) for k, v in losses.items() if 'loss' in k] == [0, 0]
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert (model.crops, model.ignored_crops) == (4, 3) and len(said) == 1
    for _ in range(4):
        model.loss(image, samples(255, 255))
    assert len(said) == 2 and said[1].startswith('no labelled pixel in 10 of 11 crops')


@pytest.mark.parametrize('attention', ['cbam', 'gc,se', 'sk'])
@pytest.mark.parametrize('model', ['ccnet', 'ann', 'danet', 'nonlocal', 'gcnet'])
def test_attention_in_the_backbone_learns(model, attention):
    init_default_scope('mmseg')
    cfg = load_config(ROOT / 'configs' / f'{model}_r18_street.py', {}, attention).model
    replace_type(cfg, 'SyncBN', 'BN')
    segmentor = MODELS.build(ConfigDict(cfg)).train()
    segmentor.init_weights()
    for _, block in named_plugins(segmentor):
        randomise(block)
    label = torch.randint(0, 19, (2, 1, 64, 96))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=v)) for v in label]
    losses = segmentor.loss(torch.randn(2, 3, 64, 96), samples)
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    blocks = named_plugins(segmentor)
    assert {type(block).__name__ for _, block in blocks} == KINDS[attention]
    for path, block in blocks:
        for name, p in block.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), f'{path}.{name}'
        assert any(p.grad.any() for p in block.parameters()), path
