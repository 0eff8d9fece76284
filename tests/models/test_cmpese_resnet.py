import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import ResNet
from mmseg.models import ResNetV1c

from mmattn import CMPESEResNet, CMPESEResNetV1c
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

SMALL = dict(base_channels=8, cmpese=dict(reduction=4))
HOSTS = {
    'mmdet': (CMPESEResNet, ResNet, {}),
    'mmseg': (CMPESEResNetV1c, ResNetV1c, dict(stem_channels=8)),
}
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def slow_cmpese(u, x, w, path, training):
    """s = sigmoid(W2 relu(W1 f)), f the mean over the maps of BN(conv1x1 of the pairs of means)."""
    pairs = torch.stack([u.mean((2, 3)), x.mean((2, 3))], 2)[:, None]  # (N, 1, C, 2)
    maps = norm(F.conv2d(pairs, w[f'{path}.maps.conv.weight']), w, f'{path}.maps.bn', training)
    hidden = (maps.mean(1).flatten(1) @ w[f'{path}.fc1.weight'].mT).clamp(min=0)
    s = 1 / (1 + (-hidden @ w[f'{path}.fc2.weight'].mT).exp())
    return u * s[:, :, None, None] + x


def slow_resnet(x, w, depth, training):
    if 'conv1.weight' in w:
        x = norm(F.conv2d(x, w['conv1.weight'], None, 2, 3), w, 'bn1', training).clamp(min=0)
    else:
        for k in 0, 3, 6:
            x = F.conv2d(x, w[f'stem.{k}.weight'], None, 2 if k == 0 else 1, 1)
            x = norm(x, w, f'stem.{k + 1}', training).clamp(min=0)
    x, levels, bottleneck = F.max_pool2d(x, 3, 2, 1), [], depth > 34
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        for k in range(blocks):
            path, stride = f'layer{stage}.{k}', 2 if k == 0 and stage > 1 else 1
            strides, paddings = ((1, stride, 1), (0, 1, 0)) if bottleneck else ((stride, 1), (1, 1))
            y = x
            for j, (step, padding) in enumerate(zip(strides, paddings), 1):
                y = y.clamp(min=0) if j > 1 else y
                y = F.conv2d(y, w[f'{path}.conv{j}.weight'], None, step, padding)
                y = norm(y, w, f'{path}.bn{j}', training)
            if f'{path}.downsample.0.weight' in w:
                x = F.conv2d(x, w[f'{path}.downsample.0.weight'], None, stride)
                x = norm(x, w, f'{path}.downsample.1', training)
            x = slow_cmpese(y, x, w, f'{path}.cmpese', training).clamp(min=0)
        levels.append(x)
    return levels


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('depth', BLOCKS)
@pytest.mark.parametrize('host', HOSTS)
def test_equals_the_equations(host, depth, training):
    cls, _, options = HOSTS[host]
    model = cls(depth=depth, norm_eval=False, **SMALL, **options)
    set_mode(randomised(model), training)
    x = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    w = {k: v.clone() for k, v in model.state_dict().items()}
    equal(model(x), slow_resnet(x, w, depth, training))


PLUGINS = [
    dict(cfg=dict(type='mmattn.SE', reduction=4, postfix=k), position=f'after_conv{k}')
    for k in (1, 2, 3)
]


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(
    'host, depth, options',
    [
        ('mmdet', 18, {}),
        ('mmdet', 34, dict(with_cp=True)),
        ('mmdet', 50, dict(plugins=PLUGINS, avg_down=True, deep_stem=True)),
        ('mmdet', 101, dict(style='caffe')),
        ('mmdet', 152, {}),
        ('mmseg', 18, dict(with_cp=True)),
        ('mmseg', 50, dict(plugins=PLUGINS)),
        ('mmseg', 50, dict(dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True)),
    ],
)
def test_identity_start_is_the_stock_network(host, depth, options, training):
    cls, stock, more = HOSTS[host]
    options = dict(depth=depth, base_channels=8, norm_eval=False) | more | options
    model, plain = cls(**options, cmpese=dict(reduction=4, init='identity')), stock(**options)
    model.init_weights()
    missing, unexpected = model.load_state_dict(
        randomised(plain).float().state_dict(), strict=False
    )
    assert not unexpected
    assert missing
    assert all(key.split('.')[2] == 'cmpese' for key in missing)
    x = torch.randn(2, 3, 65, 97)
    equal(set_mode(model, training)(x), set_mode(plain, training)(x), 1e-6)


@pytest.mark.parametrize('init', ['paper', 'identity'])
def test_starts_survive_a_checkpoint(init, tmp_path):
    build = functools.partial(
        CMPESEResNet, 18, base_channels=8, cmpese=dict(reduction=4, init=init)
    )
    path = str(tmp_path / 'weights.pth')
    pretrained = dict(type='Pretrained', checkpoint=path)
    plain = randomised(ResNet(18, base_channels=8)).float().state_dict()
    for weights in {}, plain, randomised(build()).float().state_dict():
        torch.save(weights, path)
        model = build(init_cfg=pretrained if weights else None)
        for block in (*model.layer1, *model.layer4):  # what must not be left
            torch.nn.init.constant_(block.cmpese.fc2.weight, 7)
        model.init_weights()
        state = model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in weights.items())
        if len(weights) < len(state):  # no checkpoint, or that of the stock network
            gate = model.layer4[1].cmpese.fc2.weight
            if init == 'identity':
                assert not gate.any()
            else:  # PyTorch's
                assert 0.5 < gate.abs().max() * gate.shape[1] ** 0.5 <= 1


@pytest.mark.parametrize('depth', BLOCKS)
@pytest.mark.parametrize('host', HOSTS)
def test_zero_init_residual_makes_a_block_its_identity(host, depth):
    build = functools.partial(HOSTS[host][0], depth=depth, **SMALL, **HOSTS[host][2])
    model = build()
    model.init_weights()
    block, x = model.layer1[1], torch.rand(2, model.layer2[0].conv1.in_channels, 5, 4)
    assert torch.equal(block(x), x)
    last = block.norm3 if depth == 50 else block.norm2
    assert not last.weight.any()
    model = build(zero_init_residual=False)
    model.init_weights()
    assert not torch.equal(model.layer1[1](x), x)


def test_size():
    """C/16 (2C + C + 3) more parameters for each block of C channels."""
    with_it, without = (counted(functools.partial(cls, 50))[0] for cls in (CMPESEResNet, ResNet))
    added = sum(n * c // 16 * (3 * c + 3) for n, c in zip((3, 4, 6, 3), (256, 512, 1024, 2048)))
    assert (with_it - without) * 1e6 == pytest.approx(added, abs=0.5)


def test_views():
    for view in 'double_fc', 'pair2x1', 'fold3x3':
        cmpese = dict(reduction=4, view=view, fold_height=4)
        model = CMPESEResNet(50, base_channels=8, cmpese=cmpese)
        assert model.layer3[0].cmpese.view == view
        assert model(torch.randn(2, 3, 64, 64))[3].isfinite().all()


def test_levels():
    for depth, expansion in (18, 1), (50, 4):
        channels = [8 * expansion * k for k in (1, 2, 4, 8)]
        levels_have_strides(CMPESEResNet(depth, **SMALL), channels)


def test_freezing():
    freezes_as_mmdet(lambda **options: CMPESEResNet(50, **SMALL, **options))


@pytest.mark.parametrize('depth', BLOCKS)
@pytest.mark.parametrize('host', HOSTS)
def test_checkpointing(host, depth):
    cls, _, options = HOSTS[host]
    checkpointing_keeps_gradients(functools.partial(cls, depth=depth, **SMALL, **options))


@pytest.mark.parametrize('depth', BLOCKS)
def test_every_parameter_learns(depth):
    every_parameter_learns(CMPESEResNet(depth, **SMALL))


@pytest.mark.parametrize('name', ['CMPESEResNet', 'CMPESEResNetV1c'])
def test_trains_in_a_detector(name):
    backbone = dict(type=f'mmattn.{name}', depth=18, frozen_stages=1, **SMALL)
    trains_in_retinanet(backbone, [8, 16, 32, 64])


def test_can_be_pickled():
    model = set_mode(CMPESEResNetV1c(depth=18, **SMALL), False)
    x = torch.randn(1, 3, 32, 32)
    equal(pickle.loads(pickle.dumps(model))(x), model(x))


def test_refused_arguments():
    with pytest.raises(ValueError, match='CMPESEResNet: depth=20, allowed 18, 34, 50, 101, 152'):
        CMPESEResNet(20)
    with pytest.raises(ValueError, match='CMPESEResNetV1c: depth=20, allowed 18, 34, 50, 101, 152'):
        CMPESEResNetV1c(depth=20)
    with pytest.raises(ValueError, match='reduction=0'):
        CMPESEResNet(18, cmpese=dict(reduction=0))
    with pytest.raises(ValueError, match='fold_height=10'):
        CMPESEResNet(18, cmpese=dict(view='fold3x3'))
