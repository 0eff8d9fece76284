"""Losses of decode heads are MMSegmentation's, with its settings, and in its segmentors."""

import copy
import itertools

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.models.decode_heads import FCNHead
from mmseg.structures import SegDataSample

from mmattn.config.leaves import replace_type
from mmattn.config.load import load_config
from mmattn.models import fused_losses
from tests.conftest import ROOT


def head(classes=4, channels=None, **options):
    init_default_scope('mmseg')
    options = dict(num_classes=classes, out_channels=channels, norm_cfg=None) | options
    options.setdefault('loss_decode', dict(type='CrossEntropyLoss', avg_non_ignore=True))
    return FCNHead(in_channels=8, channels=8, **options)


def samples(labels):
    return [SegDataSample(gt_sem_seg=PixelData(data=t[None])) for t in labels]


def draw(classes, channels=None, size=(31, 37), seed=0):
    torch.manual_seed(seed)
    labels = torch.randint(classes, (2, *size))
    labels[torch.rand(labels.shape) < 0.2] = 255
    return 3 * torch.randn(2, channels or classes, 6, 7), labels


LOSSES = {
    'mean of all': dict(avg_non_ignore=False),
    'mean of labelled': dict(avg_non_ignore=True),
    'weights of classes': dict(class_weight=[0.5, 1.0, 2.0, 0.1], loss_weight=0.4),
    'sigmoid': dict(use_sigmoid=True),
    'sigmoid, labelled': dict(use_sigmoid=True, avg_non_ignore=True, loss_weight=2.0),
}
SAMPLERS = {
    'none': None,
    'threshold': dict(type='OHEMPixelSampler', thresh=0.7, min_kept=100),
    'threshold of few': dict(type='OHEMPixelSampler', thresh=0.01, min_kept=500),
    'all kept': dict(type='OHEMPixelSampler', thresh=0.01, min_kept=100_000),
    'hardest': dict(type='OHEMPixelSampler', min_kept=100),
}


def compare(module, logits, labels):
    """Both paths: values and gradients."""
    results = []
    for path in fused_losses.loss_by_feat, type(module).loss_by_feat:
        x = logits.clone().requires_grad_()
        losses = path(module, x, samples(labels))
        total = sum(value for key, value in losses.items() if 'loss' in key)
        results.append((losses, *torch.autograd.grad(total, x)))
    (mine, grad), (other, expected) = results
    assert mine.keys() == other.keys()
    for key, value in other.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-6, atol=1e-6, msg=key)
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize('sampler', SAMPLERS)
@pytest.mark.parametrize('loss', LOSSES)
def test_equal_losses(loss, sampler, monkeypatch):
    sigmoid = LOSSES[loss].get('use_sigmoid', False)
    settings = dict(type='CrossEntropyLoss', **LOSSES[loss])
    for align_corners, classes, channels in (False, 4, 4), (True, 4, 4), (False, 2, 1):
        if channels == 1 and not sigmoid:
            continue
        module = head(
            classes, channels, align_corners=align_corners, loss_decode=settings,
            sampler=SAMPLERS[sampler],
        )  # fmt: skip
        if sigmoid and sampler != 'none' and (channels == 1 or sampler == 'hardest'):
            continue  # MMSegmentation fails on these
        assert fused_losses._is_fused(module)
        compare(module, *draw(classes, channels))


def test_several_losses_of_one_name_are_added():
    settings = [
        dict(type='CrossEntropyLoss', avg_non_ignore=True),
        dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=0.5),
        dict(type='CrossEntropyLoss', loss_name='loss_other'),
    ]
    module = head(loss_decode=settings)
    assert fused_losses._is_fused(module)
    compare(module, *draw(4))


def test_weights_of_classes_go_with_the_mean_of_labelled_pixels():
    settings = dict(type='CrossEntropyLoss', class_weight=[0.5, 1.0, 2.0, 0.1])
    logits, labels = draw(4)
    found, wanted = (
        fused_losses.loss_by_feat(
            head(loss_decode=settings | dict(avg_non_ignore=flag)), logits, samples(labels)
        )['loss_ce']
        for flag in (True, False)
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    'settings',
    [
        dict(loss_decode=dict(type='DiceLoss')),
        dict(
            loss_decode=[dict(type='CrossEntropyLoss'), dict(type='LovaszLoss', reduction='none')]
        ),
        dict(loss_decode=dict(type='CrossEntropyLoss', reduction='sum')),
    ],
)
def test_other_losses_take_the_path_of_mmsegmentation(settings, monkeypatch):
    module = head(**settings)
    monkeypatch.setattr(fused_losses, 'upsampled_cross_entropy', None)
    logits, labels = draw(4)
    labels[labels == 255] = 0
    found = fused_losses.loss_by_feat(module, logits, samples(labels))
    wanted = type(module).loss_by_feat(module, logits, samples(labels))
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


# the head of DANet has several logits and a `loss_by_feat` of its own
@pytest.mark.parametrize('config', ['ccnet_r18_street', 'ocrnet_r18_street', 'danet_r18_street'])
def test_a_segmentor_has_the_losses_of_the_stock_one(config, monkeypatch):
    """Also in a copy, whose heads are its own."""
    init_default_scope('mmseg')
    cfg = load_config(ROOT / f'configs/{config}.py').model
    replace_type(cfg, 'SyncBN', 'BN')
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(cfg))
    model.init_weights()
    image, (_, labels) = torch.randn(2, 3, 64, 96), draw(19, size=(64, 96))
    copied = copy.deepcopy(model)
    calls = []
    fused = fused_losses.upsampled_cross_entropy
    monkeypatch.setattr(
        fused_losses, 'upsampled_cross_entropy', lambda *args: calls.append(args) or fused(*args)
    )
    results = []
    for network in model, copied:
        torch.manual_seed(1)
        results.append(network.loss(image, samples(labels)))
    count = len(calls)
    assert (
        count == (2 if config == 'danet_r18_street' else 4)
        and results[0].keys() == results[1].keys()
    )
    for part in model.modules():
        vars(part).pop('loss_by_feat', None)
    torch.manual_seed(1)
    results.append(model.loss(image, samples(labels)))
    assert len(calls) == count
    for key, found in itertools.chain.from_iterable(r.items() for r in results[:2]):
        torch.testing.assert_close(found, results[2][key], rtol=2e-6, atol=1e-6, msg=key)
