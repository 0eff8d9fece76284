"""Averages over scales and flips: those of MMSegmentation, one augmentation at a time."""

import copy
import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from mmengine.structures import PixelData
from mmseg.models import SegTTAModel as Stock
from mmseg.structures import SegDataSample
from torch import nn

from mmattn.config.load import load_config
from mmattn.engine.test import test as evaluate
from mmattn.errors import UsageError
from mmattn.models.seg_tta import SCALES, SegTTAModel, tta_pipeline
from tests.conftest import ROOT, randomise
from tests.models.test_slide_inference import pair, photographs
from tools import test as tool

CONFIG = ROOT / 'configs' / 'fcn_r18_street.py'
SLIDE = dict(mode='slide', crop_size=(33, 49), stride=(20, 30))


def batch(images, scales=(0.5, 1.0, 1.4)):
    """Images at several sizes, each also mirrored, as a data loader gives them."""
    inputs, samples = [], []
    for scale in scales:
        for flip in False, True:
            sized = nn.functional.interpolate(images, scale_factor=scale, mode='bilinear')
            inputs.append(list(sized.flip(3) if flip else sized))
            meta = dict(
                img_path='a.png',
                ori_shape=tuple(images.shape[2:]),
                img_shape=tuple(sized.shape[2:]),
                scale_factor=scale,
                flip=flip,
                flip_direction='horizontal' if flip else None,
                reduce_zero_label=False,
            )
            samples.append([truth(meta, i) for i in range(len(images))])
    return dict(inputs=inputs, data_samples=samples)


def truth(meta, i):
    sample = SegDataSample(metainfo=meta)
    sample.gt_sem_seg = PixelData(data=torch.full((1, *meta['ori_shape']), i))
    return sample


@torch.no_grad()
@pytest.mark.parametrize('test_cfg', [dict(mode='whole'), SLIDE])
def test_the_maps_are_mmsegs_and_the_probabilities_their_mean(test_cfg):
    ours, theirs = pair(test_cfg)
    images = photographs(2, 60, 90)
    found = SegTTAModel(ours).test_step(batch(images))
    wanted = Stock(theirs).test_step(batch(images))
    data = batch(images)
    parts = [
        [s.seg_logits.data.softmax(0) for s in theirs.test_step(dict(inputs=x, data_samples=y))]
        for x, y in zip(data['inputs'], data['data_samples'])
    ]
    plain = theirs.test_step(dict(inputs=data['inputs'][2], data_samples=data['data_samples'][2]))
    assert len(found) == 2
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert b.pred_sem_seg.data.unique().numel() > 1
        assert torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)
        assert a.pred_sem_seg.data.shape == (1, 60, 90)
        assert not torch.equal(a.pred_sem_seg.data, plain[i].pred_sem_seg.data)
        mean = torch.stack([p[i] for p in parts]).mean(0)
        torch.testing.assert_close(a.seg_probs.data, mean, rtol=0, atol=1e-6)
        assert (a.gt_sem_seg.data == i).all() and a.img_path == 'a.png'


@torch.no_grad()
def test_one_class_is_a_probability_already():
    """MMSegmentation takes the sigmoid of it again: above 0.5 everywhere, all is foreground."""
    ours, _ = pair(dict(mode='whole'), classes=1)
    images = photographs(1, 60, 90)
    data = batch(images)
    (found,) = SegTTAModel(ours).test_step(data)
    parts = []
    for x, samples in zip(data['inputs'], data['data_samples']):
        logits = ours(torch.stack(x), mode='tensor')
        logits = nn.functional.interpolate(logits, samples[0].img_shape, mode='bilinear')
        logits = logits.flip(3) if samples[0].flip else logits
        parts.append(nn.functional.interpolate(logits, (60, 90), mode='bilinear').sigmoid())
    mean = torch.cat(parts).mean(0)
    torch.testing.assert_close(found.seg_probs.data, mean, rtol=0, atol=1e-5)
    near = (mean - 0.4).abs() < 1e-4  # 0.4 is the head's threshold
    assert torch.equal(found.pred_sem_seg.data[~near], (mean > 0.4).float()[~near])
    assert 0.1 < found.pred_sem_seg.data.mean() < 0.9


class Watched(nn.Module):
    """Predicts at random and looks whether the logits before are gone."""

    out_channels = 4

    def __init__(self):
        super().__init__()
        self.given, self.most = [], 0

    def test_step(self, data):
        self.most = max(self.most, sum(ref() is not None for ref in self.given))
        samples = [sample.clone() for sample in data['data_samples']]  # as preprocessors do
        for sample in samples:
            sample.seg_logits = PixelData(data=torch.randn(4, 5, 6))
            sample.pred_sem_seg = PixelData(data=torch.zeros(1, 5, 6))
            self.given.append(weakref.ref(sample.seg_logits.data))
        return samples


def test_the_logits_of_one_augmentation_are_there_at_a_time():
    meta = dict(img_path='a.png', ori_shape=(5, 6))

    def data():
        """As a loader gives it, with nobody else to keep the samples."""
        return dict(
            inputs=[[torch.zeros(3, 5, 6)]] * 7,
            data_samples=[[SegDataSample(metainfo=meta)] for _ in range(7)],
        )

    model = SegTTAModel(Watched())
    model.test_step(data())
    assert len(model.module.given) == 7 and model.module.most == 0
    model = Stock(Watched())
    model.test_step(data())
    assert model.module.most == 6


def test_nothing_of_one_augmentation_is_left_in_the_result():
    data = batch(torch.randn(2, 3, 5, 6), scales=(0.4, 1.0))
    (first, second) = SegTTAModel(Watched()).test_step(data)
    for sample in first, second:
        assert set(sample.metainfo) == {'img_path', 'ori_shape', 'reduce_zero_label'}
        assert set(sample.keys()) == {'gt_sem_seg', 'pred_sem_seg', 'seg_probs'}


def test_merge_preds_and_data_without_names():
    logits = [[torch.randn(4, 5, 6) for _ in range(3)] for _ in range(2)]  # 2 images, 3 ways
    kept = copy.deepcopy(logits)

    def predictions():
        return [
            [
                SegDataSample(seg_logits=PixelData(data=way), metainfo=dict(img_path='a'))
                for way in image
            ]
            for image in logits
        ]

    class Echo(nn.Module):
        out_channels = 4

        def test_step(self, data):
            (samples,) = data
            return samples

    model = SegTTAModel(Echo())
    merged = model.merge_preds(predictions())
    stepped = model.test_step([list(zip(*predictions()))])
    for image, a, b in zip(logits, merged, stepped, strict=True):
        mean = torch.stack(image).softmax(1).mean(0)
        for sample in a, b:
            torch.testing.assert_close(sample.seg_probs.data, mean)
            assert torch.equal(sample.pred_sem_seg.data, mean.argmax(0, keepdim=True))
    Echo.out_channels, model.module.decode_head = 1, SimpleNamespace(threshold=0.3)
    given = predictions()
    merged = model.merge_preds(given)
    for image, samples, sample in zip(kept, given, merged, strict=True):
        torch.testing.assert_close(sample.seg_probs.data, torch.stack(image).mean(0))
        for way, one in zip(image, samples, strict=True):
            assert torch.equal(one.seg_logits.data, way)


def test_registered():
    init_default_scope('mmseg')
    model = MODELS.build(dict(type='mmattn.SegTTAModel', module=load_config(CONFIG).model))
    assert type(model) is SegTTAModel


# ---- the pipeline ---------------------------------------------------------------------------------
def mmseg_config(name):
    import mmseg

    return Config.fromfile(Path(mmseg.__file__).parent / '.mim/configs/_base_/datasets' / name)


def test_the_pipeline_is_mmsegs_own():
    cfg = load_config(CONFIG)
    theirs = mmseg_config('cityscapes.py').tta_pipeline
    theirs[0].pop('backend_args')
    assert tta_pipeline(cfg.test_dataloader.dataset.pipeline) == theirs


@pytest.mark.parametrize(
    'resize, size',
    [
        (None, (100, 60)),
        (dict(scale=(50, 40), keep_ratio=True), (50, 30)),
        (dict(scale=(50, 40)), (50, 40)),
        (dict(scale=48, keep_ratio=True), (48, 29)),
        (dict(scale_factor=0.5, keep_ratio=True), (50, 30)),
        (dict(scale_factor=(0.5, 0.2)), (50, 12)),
    ],
)
def test_scales_are_relative_to_the_resized_image(resize, size, tmp_path):
    init_default_scope('mmseg')
    path = str(tmp_path / 'a.png')
    cv2.imwrite(path, np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8))
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ]
    if resize:
        steps.insert(1, dict(type='Resize', interpolation='area', **resize))
    made = tta_pipeline(steps)
    steps = [TRANSFORMS.build(step) for step in copy.deepcopy(made)]
    cv2.imwrite(str(tmp_path / 'b.png'), np.zeros((60, 100), np.uint8))
    results = dict(
        img_path=path, seg_map_path=str(tmp_path / 'b.png'), seg_fields=[], reduce_zero_label=False
    )
    for step in steps:
        results = step(results)
    assert len(results['inputs']) == 2 * len(SCALES)
    for i, scale in enumerate(SCALES):
        plain, mirrored = results['inputs'][2 * i : 2 * i + 2]
        wanted = [round(side * scale) for side in size[::-1]]
        assert max(abs(a - b) for a, b in zip(plain.shape[1:], wanted)) <= 1
        assert torch.equal(plain.flip(2), mirrored)
        metas = [sample.metainfo for sample in results['data_samples'][2 * i : 2 * i + 2]]
        assert [m['flip'] for m in metas] == [False, True] and metas[0]['ori_shape'] == (60, 100)
    assert all(s.gt_sem_seg.shape == (60, 100) for s in results['data_samples'])
    if resize:
        assert made[1]['transforms'][0][0]['interpolation'] == 'area'


def test_the_flip_is_always_told():
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='PackSegInputs', meta_keys=('ori_shape', 'flip')),
    ]
    *_, (pack,) = tta_pipeline(steps)[1]['transforms']
    assert pack['meta_keys'] == ('ori_shape', 'flip', 'flip_direction')


@pytest.mark.parametrize('extra', ['ResizeToMultiple', 'LoadImageFromFile', 'Pad'])
def test_steps_that_cannot_be_understood(extra):
    steps = [dict(type=t) for t in ('LoadImageFromFile', extra, 'LoadAnnotations', 'PackSegInputs')]
    with pytest.raises(ValueError, match=f'{extra}, .*: known are .* Write a tta_pipeline'):
        tta_pipeline(steps)
    with pytest.raises(ValueError, match='no scales and flips for a test pipeline of LoadImage'):
        tta_pipeline(steps[:1])


# ---- tools/test.py --------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Weights at random, with which no class is ahead everywhere."""
    torch.manual_seed(0)
    init_default_scope('mmseg')
    cfg = load_config(CONFIG)
    cfg.model.backbone.norm_cfg = cfg.model.decode_head.norm_cfg = dict(type='BN')
    cfg.model.auxiliary_head.norm_cfg = dict(type='BN')
    model = MODELS.build(cfg.model)
    randomise(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    path = tmp_path_factory.mktemp('weights') / 'random.pth'
    with torch.no_grad():
        ahead = model.eval()(photographs(2, 64, 128), mode='tensor').mean((0, 2, 3))
        model.decode_head.conv_seg.bias -= ahead
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def same(found, wanted):
    """Whether metrics are equal, those included that no pixel gives a value: null in a record."""
    found, wanted = (
        {k: None if v != v else v for k, v in metrics.items()} for metrics in (found, wanted)
    )
    return found == wanted


@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_the_tool_averages(mode, checkpoint, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = dict(tiny)
    if mode == 'slide':
        options |= {'model.test_cfg.mode': 'slide', 'model.test_cfg.crop_size': (60, 100)}
        options |= {'model.test_cfg.stride': (50, 80)}
    flags = [f'{key}={value}'.replace(' ', '') for key, value in options.items()]
    maps, shown = tmp_path / 'maps', tmp_path / 'shown'
    arguments = [str(CONFIG), str(checkpoint), '--work-dir', str(tmp_path / 'w'), '--tta']
    arguments += ['--out', str(maps), '--show-dir', str(shown), '--cfg-options', *flags]
    assert tool.main(arguments) == 0
    record = json.loads((tmp_path / 'w' / 'metrics' / 'random_tta.json').read_text())
    assert ' random.pth --tta --cfg-options ' in record['command']
    written = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in sorted(maps.glob('*.png'))]
    assert len(written) == 2 and all(m.shape == (64, 128) for m in written)
    assert len({int(v) for m in written for v in np.unique(m)}) > 2
    assert len(list(shown.glob('*.png'))) == 2

    merged, merge = [], Stock.merge_preds
    monkeypatch.setattr(Stock, 'merge_preds', lambda *a: merged.append(1) or merge(*a))
    theirs = evaluate(  # by MMSegmentation's network and average, from the config's own keys
        CONFIG,
        checkpoint,
        work_dir=tmp_path / 'theirs',
        out=tmp_path / 'their_maps',
        tta=True,
        rehearsal=False,  # which would merge, too
        cfg_options=options | {'model.type': 'EncoderDecoder', 'tta_model.type': 'SegTTAModel'},
    )
    assert same(theirs, record['metrics']) and len(merged) == 2
    single = evaluate(CONFIG, checkpoint, work_dir=tmp_path / 'single', cfg_options=options)
    assert not same(single, record['metrics'])
    for found, path in zip(written, sorted((tmp_path / 'their_maps').glob('*.png')), strict=True):
        assert (found == cv2.imread(str(path), cv2.IMREAD_UNCHANGED)).all()


def test_the_configs_own_pipeline_is_taken(checkpoint, tiny, tmp_path, monkeypatch):
    own = tta_pipeline(load_config(CONFIG).test_dataloader.dataset.pipeline)
    own[1]['transforms'][:2] = own[1]['transforms'][0][2:3], own[1]['transforms'][1][:1]
    config = tmp_path / 'own.py'
    config.write_text(f"_base_ = ['{CONFIG}']\ntta_pipeline = {own!r}\n")
    found = evaluate(config, checkpoint, work_dir=tmp_path / 'a', tta=True, cfg_options=tiny)
    wanted = evaluate(config, checkpoint, work_dir=tmp_path / 'b', cfg_options=tiny)
    assert same(found, wanted)  # at one scale and without flips it is the plain test


def test_refused(checkpoint, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    detector = ['configs/mask_rcnn_r18_street.py', str(checkpoint), '--work-dir', str(tmp_path)]
    assert tool.main([*detector, '--tta']) == 2
    said = 'merges boxes alone, and model.roi_head.mask_head predicts masks. Leave --tta out'
    assert said in capsys.readouterr().err
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='ResizeToMultiple'),
        dict(type='PackSegInputs'),
    ]
    options = tiny | {'test_dataloader.dataset.pipeline': steps}
    with pytest.raises(UsageError, match='--tta: no scales and flips for .*ResizeToMultiple'):
        evaluate(CONFIG, checkpoint, work_dir=tmp_path, tta=True, cfg_options=options)
