"""SKNet, and the checks that it shares with the other backbones."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import ResNet
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmattn import SKNet
from tests.conftest import randomise

SMALL = dict(depth=50, base_channels=16, groups=4, reduction=4, min_channels=4)  # d = 4, 8, 16, 32


def randomised(model, seed=1):
    torch.manual_seed(seed)
    return randomise(model).double()


def set_mode(model, training):
    model.train(training)  # mmdet's returns None
    return model


def norms(module):
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def counted(build):
    """M parameters, M running statistics, G multiply-adds at 224x224; a classifier on top."""
    with torch.device('meta'), FlopCounterMode(display=False) as flops:
        model, classifier = set_mode(build(), False), nn.Linear(2048, 1000)
        classifier(model(torch.empty(1, 3, 224, 224))[-1].mean((2, 3)))
    parameters = sum(p.numel() for m in (model, classifier) for p in m.parameters())
    statistics = sum(2 * m.num_features for m in norms(model))
    return parameters / 1e6, statistics / 1e6, flops.get_total_flops() / 2e9


def equal(found, wanted, tolerance=1e-10):
    assert len(found) == len(wanted)
    for mine, other in zip(found, wanted):
        assert mine.shape == other.shape
        assert (mine - other).abs().max() <= tolerance * other.abs().max().clamp(min=1)


def levels_have_strides(model, channels):
    for height, width in ((1, 1), (33, 70), (64, 97)):
        shapes = [y.shape for y in set_mode(model, False)(torch.randn(1, 3, height, width))]
        assert shapes == [
            (1, c, -(-height // s), -(-width // s)) for c, s in zip(channels, (4, 8, 16, 32))
        ]


def freezes_as_mmdet(build):
    """Module by module below stem and stages: which learn, which are in training mode."""

    def states(**options):
        for model in build(**options), ResNet(50, base_channels=8, **options):
            model.train()
            parts = ('conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4')
            yield [
                (
                    {p.requires_grad for p in getattr(model, part).parameters()},
                    {m.training for m in getattr(model, part).modules() if not norms(m)},
                    {m.training for m in norms(getattr(model, part))},
                )
                for part in parts
            ]

    for frozen in (-1, 0, 2, 4):
        for norm_eval in (False, True):
            ours, theirs = states(frozen_stages=frozen, norm_eval=norm_eval)
            assert ours == theirs


def checkpointing_keeps_gradients(build):
    x, found = torch.randn(2, 3, 33, 40, dtype=torch.float64), []
    for with_cp in False, True:
        model, runs = set_mode(randomised(build(with_cp=with_cp, norm_eval=False)), True), []
        model.layer2[0].conv1.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        outputs = model(x)
        sum(y.square().sum() for y in outputs).backward()
        assert len(runs) == (2 if with_cp else 1)
        found.append([*outputs, *(p.grad for p in model.parameters())])
    equal(*found)


def every_parameter_learns(model):
    model.eval()
    without = {
        f'{path}.{name}'
        for path, m in model.named_modules()
        for name in getattr(m, 'without_effect', ())
    }
    seen = set()
    for seed in range(3):  # a few activations are dead in one draw
        randomised(model, seed)
        outputs = model(torch.randn(2, 3, 64, 96, dtype=torch.float64))
        model.zero_grad()
        sum((y * torch.randn_like(y)).sum() for y in outputs).backward()
        seen |= {name for name, value in model.named_parameters() if value.grad.any()}
    assert {name for name, _ in model.named_parameters()} - without <= seen


def trains_in_retinanet(backbone, channels):
    """One step of mmdet's detector, with the backbone found by name."""
    cfg = dict(
        type='RetinaNet',
        data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
        backbone=backbone,
        neck=dict(type='FPN', in_channels=channels, out_channels=8, num_outs=5),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=2,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=1,
                ratios=[1.0],
                strides=[4, 8, 16, 32, 64],
            ),
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg)
        model.init_weights()
        sample = DetDataSample(
            metainfo=dict(img_shape=(64, 96), batch_input_shape=(64, 96)),
            gt_instances=InstanceData(
                bboxes=torch.tensor([[8.0, 8.0, 40.0, 48.0]]), labels=torch.tensor([1])
            ),
        )
        images = [torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
        before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
        step = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
        data = dict(inputs=images, data_samples=[sample, sample.clone()])
        losses = model.train().train_step(data, step)
    assert all(loss.isfinite().all() for loss in losses.values())
    after = dict(model.backbone.named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def norm(x, w, path, training):
    """Batch norm, written out."""
    mean, var = w[f'{path}.running_mean'], w[f'{path}.running_var']
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    mean, var, weight, bias = (
        v[:, None, None] for v in (mean, var, w[f'{path}.weight'], w[f'{path}.bias'])
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def slow_unit(x, w, path, stride, groups, training):
    """Eq. 1-6."""
    u = []
    for i in 0, 1:
        weight = w[f'{path}.convs.{i}.0.weight']
        c = F.conv2d(x, weight, None, stride, 1 + i, 1 + i, groups)
        u.append(norm(c, w, f'{path}.convs.{i}.1', training).clamp(min=0))
    z = (u[0] + u[1]).mean((2, 3), keepdim=True)
    h = norm(F.conv2d(z, w[f'{path}.fc1.0.weight']), w, f'{path}.fc1.1', training).clamp(min=0)
    logits = F.conv2d(h, w[f'{path}.fc2.weight'])
    first, second = logits.exp().split(x.shape[1], 1)
    return (first * u[0] + second * u[1]) / (first + second)


def slow_sknet(x, w, training, groups=4):
    """Table 1."""
    x = norm(F.conv2d(x, w['conv1.weight'], None, 2, 3), w, 'bn1', training).clamp(min=0)
    x, levels = F.max_pool2d(x, 3, 2, 1), []
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for k in range(blocks):
            path, stride = f'layer{stage}.{k}', 2 if k == 0 and stage > 1 else 1
            y = F.conv2d(x, w[f'{path}.conv1.weight'])
            y = norm(y, w, f'{path}.bn1', training).clamp(min=0)
            y = slow_unit(y, w, f'{path}.conv2', stride, groups, training)
            y = norm(F.conv2d(y, w[f'{path}.conv3.weight']), w, f'{path}.bn3', training)
            if k == 0:
                x = F.conv2d(x, w[f'{path}.downsample.0.weight'], None, stride)
                x = norm(x, w, f'{path}.downsample.1', training)
            x = (x + y).clamp(min=0)
        levels.append(x)
    return levels


@pytest.mark.parametrize('training', [False, True])
def test_equals_the_equations(training):
    model = set_mode(randomised(SKNet(**SMALL, norm_eval=False)), training)
    x = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    wanted = slow_sknet(x, {k: v.clone() for k, v in model.state_dict().items()}, training)
    equal(model(x), wanted)


@pytest.mark.parametrize(
    'depth, exact, parameters, operations',
    [(50, 27.479784, 27.5, 4.47), (101, 48.73604, 48.9, 8.46)],
)
def test_size_is_that_of_the_paper(depth, exact, parameters, operations):
    found, statistics, operations_found = counted(lambda: SKNet(depth))
    assert found == pytest.approx(exact, abs=1e-6)
    # table 2 counts the running statistics in its rows of 101 layers, not in those of 50
    assert round(found + (depth == 101) * statistics, 1) == parameters
    assert operations_found == pytest.approx(operations, rel=2e-3)


def test_hidden_channels_are_those_of_the_paper():
    with torch.device('meta'):
        model = SKNet(50)
    layers = [model.layer1, model.layer2, model.layer3, model.layer4]
    assert [layer[0].conv2.fc1[0].out_channels for layer in layers] == [32, 32, 32, 64]
    assert not any('bn2' in name for name in model.state_dict())


def test_levels():
    levels_have_strides(SKNet(**SMALL), (64, 128, 256, 512))
    model = set_mode(SKNet(**SMALL, out_indices=(1, 3)), False)
    assert [y.shape[1] for y in model(torch.randn(1, 3, 32, 32))] == [128, 512]


def test_dilated_stages_keep_their_size():
    model = SKNet(**SMALL, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    model.eval()
    assert {y.shape[2:] for y in model(torch.randn(1, 3, 33, 64))[1:]} == {(5, 8)}
    assert model.layer4[1].conv2.convs[1][0].dilation == (8, 8)


def test_freezing():
    freezes_as_mmdet(lambda **options: SKNet(**SMALL, **options))


def test_checkpointing():
    checkpointing_keeps_gradients(lambda **options: SKNet(**SMALL, **options))


def test_every_parameter_learns():
    every_parameter_learns(SKNet(**SMALL))


def test_starts():
    model = SKNet(50)
    model.init_weights()
    for name, value in model.named_parameters():
        if '.fc' in name and value.dim() == 4:
            assert 0.009 < value.std() < 0.011  # the prototxt's 0.01
        if name.endswith('bn3.weight'):
            assert not value.any()
    model = SKNet(**SMALL, zero_init_residual=False)
    model.init_weights()
    assert (model.layer1[0].bn3.weight == 1).all()


def test_trains_in_a_detector():
    backbone = dict(
        type='mmattn.SKNet', frozen_stages=1, norm_cfg=dict(type='GN', num_groups=4), **SMALL
    )
    trains_in_retinanet(backbone, [64, 128, 256, 512])


def test_backbones_are_found_without_imports():
    code = """
from mmdet.registry import MODELS
for name, depth in ('SKNet', 50), ('ResidualAttentionNet', 56), ('CMPESEResNet', 18), ('CMPESEResNetV1c', 18):
    print(type(MODELS.build(dict(type='mmattn.' + name, depth=depth))).__name__)
"""
    out = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        capture_output=True,
        text=True,
        env=os.environ | dict(OMP_NUM_THREADS='1'),
    )
    assert out.stdout.split() == [
        'SKNet',
        'ResidualAttentionNet',
        'CMPESEResNet',
        'CMPESEResNetV1c',
    ], out.stderr


def test_refused_arguments():
    with pytest.raises(ValueError, match='SKNet: depth=26, allowed 50, 101'):
        SKNet(26)
    with pytest.raises(ValueError, match='SKNet: dcn='):
        SKNet(50, dcn=dict(type='DCNv2'), stage_with_dcn=(True,) * 4)
    with pytest.raises(ValueError, match='branches=1'):
        SKNet(50, branches=1)
