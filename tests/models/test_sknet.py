import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from mmattn import SKNet
from tests.models.backbones import (
    checkpointing_keeps_gradients,
    counted,
    equal,
    every_parameter_learns,
    freezes_as_mmdet,
    levels_have_strides,
    norm,
    randomised,
    set_mode,
    trains_in_retinanet,
)

SMALL = dict(depth=50, base_channels=16, groups=4, reduction=4, min_channels=4)  # d = 4, 8, 16, 32


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
for name, depth in ('SKNet', 50), ('ResidualAttentionNet', 56), ('CMPESEResNet', 18), ('CMPESEResNetV1c', 18), \\
    ('GatedResNet', 18), ('GatedResNetV1c', 18):
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
        'GatedResNet',
        'GatedResNetV1c',
    ], out.stderr


def test_refused_arguments():
    with pytest.raises(ValueError, match='SKNet: depth=26, allowed 50, 101'):
        SKNet(26)
    with pytest.raises(ValueError, match='SKNet: dcn='):
        SKNet(50, dcn=dict(type='DCNv2'), stage_with_dcn=(True,) * 4)
    with pytest.raises(ValueError, match='branches=1'):
        SKNet(50, branches=1)
