"""Inference of the segmentor: MMSegmentation's results to the bit, in less memory."""

import copy
import random

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmseg.models import EncoderDecoder as Stock
from mmseg.structures import SegDataSample
from torch import nn

from mmattn.benchmarks.timing import peak_bytes
from mmattn.models.slide_inference import SegmentorInference, Sliding, class_map
from tests.conftest import randomise


class Network:
    """Logits that depend on the image and on where in the window a pixel lies."""

    align_corners = False

    def __init__(self, test_cfg, out_channels=3):
        self.test_cfg, self.out_channels = ConfigDict(test_cfg), out_channels
        self.seen = []

    def encode_decode(self, inputs, batch_img_metas):
        self.seen.append((len(inputs), copy.deepcopy(batch_img_metas)))
        height, width = inputs.shape[2:]
        ramp = torch.arange(height * width).view(height, width).to(inputs) / 7
        maps = [(inputs.sum(1) * (i + 1) + ramp).sin() for i in range(self.out_channels)]
        return torch.stack(maps, 1)


class Theirs(Network):
    slide_inference = Stock.slide_inference
    postprocess_result = Stock.postprocess_result


class Ours(SegmentorInference, Network):
    pass


def cases(count):
    draw = random.Random(0)
    dtypes = torch.float32, torch.float64, torch.float16, torch.bfloat16
    for i in range(count):
        size = [draw.randint(1, 40) for _ in range(2)]
        crop = [draw.choice([side, draw.randint(1, 45)]) for side in size]
        dense = draw.choice([1, 1, 4])  # windows over a pixel: also numbers as 3 and 5 a side
        stride = [draw.randint(1, -(-side // dense)) for side in crop]
        cfg = dict(mode='slide', crop_size=tuple(crop), stride=tuple(stride))
        yield cfg, (draw.randint(1, 3), 2, *size), dtypes[i % 4]


def metas(images):
    shape = tuple(images.shape[2:])
    return [dict(img_shape=shape, ori_shape=shape, name=i) for i in range(len(images))]


def test_equal_for_many_sizes_crops_strides_and_batches():
    windows = []
    for cfg, shape, dtype in cases(160):
        images = torch.randn(shape).to(dtype)
        ours, theirs = Ours(test_cfg=cfg), Theirs(cfg)
        found = ours.slide_inference(images, metas(images))
        wanted = theirs.slide_inference(images, metas(images))
        assert found.dtype == dtype and found.shape == wanted.shape
        assert torch.equal(found, wanted), (cfg, shape, dtype)
        assert len(ours.seen) == len(theirs.seen)
        windows.append(len(ours.seen))
    assert 1 in windows and max(windows) > 50


def test_batched_windows_add_up_in_the_same_order():
    several = 0
    for cfg, shape, dtype in cases(80):
        images = torch.randn(shape).to(dtype)
        wanted = Theirs(cfg).slide_inference(images, metas(images))
        for batch in 2, 3, 100:
            ours = Ours(test_cfg=dict(cfg, window_batch=batch))
            assert torch.equal(ours.slide_inference(images, metas(images)), wanted)
            sizes = [size // len(images) for size, _ in ours.seen]
            assert set(sizes[:-1]) <= {batch} and sizes[-1] <= batch
            assert all(len(m) == size for size, m in ours.seen)
            several += sizes[0] > 1
    assert several > 50


def test_the_metas_say_the_window_to_the_head_and_stay_as_they_were():
    cfg = dict(mode='slide', crop_size=(5, 6), stride=(4, 4))
    images = torch.randn(2, 2, 9, 13)
    given = metas(images)
    before = copy.deepcopy(given)
    network = Ours(test_cfg=dict(cfg, window_batch=2))
    network.slide_inference(images, given)
    assert given == before
    for _, seen in network.seen:
        for i, meta in enumerate(seen):
            assert isinstance(meta['img_shape'], torch.Size) and meta['img_shape'] == (5, 6)
            assert meta['ori_shape'] == (9, 13) and meta['name'] == i % 2


@pytest.mark.parametrize('mode', [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_in_every_mode_of_autograd(mode):
    cfg = dict(mode='slide', crop_size=(5, 6), stride=(3, 4))
    images = torch.randn(1, 2, 9, 13)
    with mode():
        images = images.clone().requires_grad_(mode is torch.enable_grad)
        found = Ours(test_cfg=cfg).slide_inference(images, metas(images))
        wanted = Theirs(cfg).slide_inference(images, metas(images))
        assert torch.equal(found, wanted)
        maps = [
            n.postprocess_result(found, None)[0].pred_sem_seg.data
            for n in (Ours(test_cfg=cfg), Theirs(cfg))
        ]
        assert torch.equal(*maps)
    if mode is torch.enable_grad:
        gradients = [torch.autograd.grad((y * y).sum(), images)[0] for y in (found, wanted)]
        torch.testing.assert_close(*gradients)


def test_it_takes_less_memory_than_mmseg():
    cfg = dict(mode='slide', crop_size=(48, 48), stride=(32, 32))
    images = torch.randn(1, 3, 64, 128)
    logits = torch.randn(1, 19, 48, 48)

    def measured(network):
        network.encode_decode = lambda inputs, batch_img_metas: logits
        return peak_bytes(lambda: network.slide_inference(images, metas(images)))

    result = 19 * 64 * 128 * 4
    ours, theirs = measured(Ours(test_cfg=cfg, out_channels=19)), measured(Theirs(cfg, 19))
    assert result <= ours < 1.15 * result
    assert theirs > 1.8 * result


# ---- what is refused ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'change, message',
    [
        (dict(crop_size=None), "no crop_size, which mode='slide' needs"),
        (dict(stride=None), "no stride, which mode='slide' needs"),
        (dict(crop_size=8), r'crop_size=8, allowed are two numbers from 1'),
        (dict(crop_size=(8, 8, 8)), r'crop_size=\(8, 8, 8\)'),
        (dict(crop_size=(8, True)), r'crop_size=\(8, True\)'),
        (dict(crop_size='88'), "crop_size='88'"),
        (dict(stride=(4.0, 4)), r'stride=\(4.0, 4\)'),
        (dict(stride=(0, 4)), r'stride=\(0, 4\)'),
        (
            dict(stride=(9, 8)),
            r'stride=\(9, 8\) leaves holes between windows of crop_size=\(8, 8\)',
        ),
        (dict(stride=(8, 9)), r'stride=\(8, 9\) leaves holes'),
        (dict(window_batch=0), 'window_batch=0, allowed are whole numbers from 1'),
        (dict(window_batch=True), 'window_batch=True'),
        (dict(window_batch=2.0), 'window_batch=2.0'),
        (dict(window_batch='2'), "window_batch='2'"),
        (dict(window_batch=None), 'window_batch=None'),
        (dict(mode='whole', window_batch=-1), 'window_batch=-1'),
        (dict(mode='sliding'), "mode='sliding', allowed 'whole', 'slide'"),
    ],
)
def test_refused_at_construction_and_at_the_call(change, message):
    good = dict(mode='slide', crop_size=(8, 8), stride=(4, 4), window_batch=1)
    with pytest.raises(ValueError, match=message):
        Ours(test_cfg=good | change)
    with pytest.raises(ValueError, match=message):
        model(MODELS, 'mmattn.EncoderDecoder', good | change)
    if 'mode' not in change:
        network = Ours(test_cfg=good)
        network.test_cfg.update(change)
        with pytest.raises(ValueError, match=message):
            network.slide_inference(torch.randn(1, 2, 9, 9), [{}])


def test_missing_keys_are_said_and_lists_are_taken():
    with pytest.raises(ValueError, match='no crop_size'):
        Ours(test_cfg=dict(mode='slide', stride=(4, 4)))
    with pytest.raises(ValueError, match='no stride'):
        Ours(test_cfg=dict(mode='slide', crop_size=(4, 4)))
    assert Sliding.of(dict(crop_size=[4, 5], stride=[4, 5])) == Sliding((4, 5), (4, 5), 1)
    Ours(test_cfg=dict(mode='whole'))
    Ours(test_cfg={})


# ---- whole segmentors -----------------------------------------------------------------------------
def model(registry, kind, test_cfg, align_corners=False, classes=5):
    """A narrow ResNet-18 at stride 8 with an FCN head."""
    init_default_scope('mmseg')
    norm = dict(type='BN')
    channels = 8
    head = dict(
        type='FCNHead', in_channels=channels * 8, in_index=3, channels=8, num_classes=classes,
        norm_cfg=norm, align_corners=align_corners,
    )  # fmt: skip
    if classes == 1:
        head |= dict(out_channels=1, num_classes=2, threshold=0.4)
        head['loss_decode'] = dict(type='CrossEntropyLoss', use_sigmoid=True)
    backbone = dict(
        type='ResNetV1c', depth=18, base_channels=channels, stem_channels=channels,
        strides=(1, 2, 1, 1), norm_cfg=norm,
    )  # fmt: skip
    cfg = dict(
        type=kind, backbone=backbone, decode_head=head, test_cfg=test_cfg,
        data_preprocessor=dict(type='SegDataPreProcessor'),
    )  # fmt: skip
    return registry.build(ConfigDict(cfg))


def pair(test_cfg, **kwargs):
    """Ours and MMSegmentation's segmentor with one random state dict."""
    ours = model(MODELS, 'mmattn.EncoderDecoder', test_cfg, **kwargs)
    theirs = model(MODELS, 'EncoderDecoder', test_cfg, **kwargs)
    assert type(theirs) is Stock and isinstance(ours, SegmentorInference)
    randomise(ours)
    for module in ours.modules():  # values keep their size through the layers
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    ours.eval()
    with torch.no_grad():  # no class is ahead everywhere
        images = photographs(2, 64, 96)
        ours.decode_head.conv_seg.weight *= 2 / ours(images, mode='tensor').std((0, 2, 3)).mean()
        ours.decode_head.conv_seg.bias -= ours(images, mode='tensor').mean((0, 2, 3))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.eval()


def photographs(count, height, width):
    coarse = torch.randn(count, 3, max(height // 9, 1), max(width // 9, 1))
    images = nn.functional.interpolate(coarse, (height, width), mode='bilinear')
    return images + 0.1 * torch.randn(count, 3, height, width)


def samples(images, **changes):
    shape = tuple(images.shape[2:])
    meta = dict(img_shape=shape, ori_shape=shape, img_path='a.png') | changes
    return [SegDataSample(metainfo=meta) for _ in images]


SLIDE = dict(mode='slide', crop_size=(49, 49), stride=(33, 25))


@torch.no_grad()
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(64, 97), (30, 120), (49, 49), (20, 31)])
@pytest.mark.parametrize('test_cfg', [dict(mode='whole'), SLIDE])
def test_the_segmentor_predicts_what_mmsegs_does(test_cfg, size, align_corners):
    ours, theirs = pair(test_cfg, align_corners=align_corners)
    images = photographs(2, *size)
    for flips in {}, dict(flip=True, flip_direction='horizontal', ori_shape=(33, 70)):
        found, wanted = (m.predict(images, samples(images, **flips)) for m in (ours, theirs))
        for a, b in zip(found, wanted, strict=True):
            assert b.pred_sem_seg.data.unique().numel() > 1  # no trivial map
            assert torch.equal(a.seg_logits.data, b.seg_logits.data)
            assert torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)


@torch.no_grad()
def test_several_windows_at_once_give_the_same_map():
    ours, theirs = pair(SLIDE)
    ours.test_cfg.window_batch = 3
    images = photographs(2, 70, 101)
    found, wanted = (m.predict(images, samples(images)) for m in (ours, theirs))
    for a, b in zip(found, wanted, strict=True):
        scale = b.seg_logits.data.abs().max()
        torch.testing.assert_close(
            a.seg_logits.data / scale, b.seg_logits.data / scale, rtol=0, atol=1e-5
        )
        assert torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)


@torch.no_grad()
def test_without_samples_there_is_nothing_to_restore():
    ours, theirs = pair(SLIDE)
    images = photographs(2, 64, 97)
    for a, b in zip(ours.predict(images), theirs.predict(images), strict=True):
        assert torch.equal(a.seg_logits.data, b.seg_logits.data)
        assert torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)


@torch.no_grad()
@pytest.mark.parametrize('classes', [1, 5])
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(
    'meta',
    [
        dict(),
        dict(ori_shape=(31, 55)),
        dict(padding_size=[0, 5, 2, 3], ori_shape=(25, 35)),
        dict(img_padding_size=[1, 0, 0, 2], padding_size=[9, 9, 9, 9], ori_shape=(28, 39)),
        dict(padding_size=[0, 5, 2, 3], ori_shape=(50, 35)),
        dict(flip=True, flip_direction='horizontal'),
        dict(flip=True, flip_direction='vertical', ori_shape=(60, 80)),
        dict(flip=False, flip_direction=None),
    ],
)
def test_restored_to_the_image_as_mmseg_does(meta, align_corners, classes):
    ours, theirs = pair(dict(mode='whole'), align_corners=align_corners, classes=classes)
    logits = torch.randn(2, classes, 30, 40)
    given = logits.clone()
    meta = dict(ori_shape=(30, 40)) | meta
    results = [m.postprocess_result(logits, samples(logits, **meta)) for m in (ours, theirs)]
    assert torch.equal(logits, given)
    for a, b in zip(*results, strict=True):
        assert a.pred_sem_seg.data.dtype == b.pred_sem_seg.data.dtype
        assert torch.equal(a.seg_logits.data, b.seg_logits.data)
        assert torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)
        logits_of_one = a.seg_logits.data  # which would keep the whole batch if it were a view
        assert logits_of_one.untyped_storage().nbytes() == logits_of_one.numel() * 4


def test_a_flip_along_both_sides_is_undone():
    logits = torch.randn(1, 3, 5, 7)
    (sample,) = Ours(test_cfg={}).postprocess_result(
        logits, samples(logits, flip=True, flip_direction='diagonal')
    )
    assert torch.equal(sample.seg_logits.data, logits[0].flip(1).flip(2))


# ---- the map of classes ---------------------------------------------------------------------------
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('classes', [1, 2, 19, 255, 256, 257])
def test_class_map_is_argmax(classes, dtype, monkeypatch):
    monkeypatch.setattr('mmattn.models.slide_inference._BLOCK', 64)  # several blocks
    for height, width in (1, 1), (37, 11), (3, 90):
        for scale in 1, 100:  # rounded: ties in nearly every pixel
            scores = (torch.randn(classes, height, width) * scale).round().div(scale).to(dtype)
            assert torch.equal(class_map(scores), scores.argmax(0, keepdim=True))
            turned = scores.flip(0).transpose(1, 2)
            assert torch.equal(class_map(turned), turned.argmax(0, keepdim=True))


def test_class_map_with_values_that_are_not_finite():
    for special in float('inf'), -float('inf'), float('nan'):
        scores = torch.randn(6, 20, 30)
        scores[torch.rand(scores.shape) < 0.3] = special
        assert torch.equal(class_map(scores), scores.argmax(0, keepdim=True))
    assert class_map(torch.zeros(4, 0, 7)).shape == (1, 0, 7)
