import pytest
import torch
import torch.nn.functional as F

from mmattn import ResidualAttentionNet
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

SMALL = dict(depth=56, base_channels=4)


def slow_unit(x, w, path, training, stride=1):
    a = norm(x, w, f'{path}.bn1', training).clamp(min=0)
    y = norm(F.conv2d(a, w[f'{path}.conv1.weight']), w, f'{path}.bn2', training).clamp(min=0)
    y = F.conv2d(y, w[f'{path}.conv2.weight'], None, stride, 1)
    y = F.conv2d(norm(y, w, f'{path}.bn3', training).clamp(min=0), w[f'{path}.conv3.weight'])
    shortcut = w.get(f'{path}.conv4.weight')
    return y + (x if shortcut is None else F.conv2d(a, shortcut, None, stride))


def slow_module(x, w, path, depth, training):
    """Fig. 2; the mask branch is written as what happens below the map of each size."""

    def unit(x, name):
        return slow_unit(x, w, f'{path}.{name}', training)

    def below(e, k):
        b = F.max_pool2d(e, 3, 2, 1)
        if k == depth:
            b = unit(unit(b, 'bottom.0'), 'bottom.1')
        else:
            b = unit(b, f'down.{k - 1}.0')
            b = unit(below(b, k + 1) + unit(b, f'skip.{k - 1}'), f'up.{k - 1}.0')
        return F.interpolate(b, e.shape[2:], mode='bilinear', align_corners=True)

    x = unit(x, 'pre.0')
    mask = below(x, 1)
    for k in 1, 2:
        mask = norm(mask, w, f'{path}.gate.bn{k}', training).clamp(min=0)
        mask = F.conv2d(mask, w[f'{path}.gate.conv{k}.weight'])
    trunk = unit(unit(x, 'trunk.0'), 'trunk.1')
    return unit((1 + mask.sigmoid()) * trunk, 'post.0')


def slow_net(x, w, modules, training):
    """Table 2."""
    x = norm(F.conv2d(x, w['conv1.weight'], None, 2, 3), w, 'bn1', training).clamp(min=0)
    x, levels = F.max_pool2d(x, 3, 2, 1), []
    for stage in 1, 2, 3, 4:
        x = slow_unit(x, w, f'layer{stage}.0', training, 1 if stage == 1 else 2)
        if stage < 4:
            for k in range(modules[stage - 1]):
                x = slow_module(x, w, f'layer{stage}.{k + 1}', 4 - stage, training)
        else:
            x = slow_unit(slow_unit(x, w, 'layer4.1', training), w, 'layer4.2', training)
            x = norm(x, w, 'layer4.norm', training).clamp(min=0)
        levels.append(x)
    return levels


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('depth, modules', [(56, (1, 1, 1)), (92, (1, 2, 3))])
def test_equals_the_equations(depth, modules, training):
    model = ResidualAttentionNet(depth, base_channels=4, norm_eval=False)
    set_mode(randomised(model), training)
    x = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    w = {k: v.clone() for k, v in model.state_dict().items()}
    equal(model(x), slow_net(x, w, modules, training))


def test_size_of_56_is_that_of_the_paper():
    parameters, statistics, operations = counted(lambda: ResidualAttentionNet(56))
    assert parameters == pytest.approx(31.810728, abs=1e-6)
    assert round(parameters + statistics, 1) == 31.9
    assert round(operations, 2) == 6.32


def test_size_of_92_is_that_of_the_prototxt():
    """The tables say 51.3 M and 10.43 G; the layers of the authors' file add up to these."""
    parameters, _, operations = counted(lambda: ResidualAttentionNet(92))
    assert parameters == pytest.approx(52.466344, abs=1e-6)
    assert operations == pytest.approx(10.5975, abs=1e-4)


def test_levels():
    levels_have_strides(ResidualAttentionNet(**SMALL), (16, 32, 64, 128))
    model = set_mode(ResidualAttentionNet(**SMALL, out_indices=(1, 3)), False)
    levels = model(torch.randn(1, 3, 32, 32))
    assert [y.shape[1] for y in levels] == [32, 128]
    assert levels[0].min() < 0 <= levels[1].min()


def test_freezing():
    freezes_as_mmdet(lambda **options: ResidualAttentionNet(**SMALL, **options))


def test_checkpointing():
    checkpointing_keeps_gradients(lambda **options: ResidualAttentionNet(**SMALL, **options))


def test_every_parameter_learns():
    every_parameter_learns(ResidualAttentionNet(**SMALL))


def test_last_norm_is_of_norm_cfg():
    model = ResidualAttentionNet(**SMALL, norm_cfg=dict(type='GN', num_groups=4))
    assert type(model.layer4.norm) is type(model.gn1) is torch.nn.GroupNorm


def test_trains_in_a_detector():
    backbone = dict(type='mmattn.ResidualAttentionNet', frozen_stages=1, norm_eval=False, **SMALL)
    trains_in_retinanet(backbone, [16, 32, 64, 128])


def test_refused_arguments():
    with pytest.raises(ValueError, match='ResidualAttentionNet: depth=50, allowed 56, 92'):
        ResidualAttentionNet(50)
