import warnings

import pytest
import torch

from mmattn import ContextBlock
from tests.blocks.slow import (
    agree,
    agree_with_peer,
    draw,
    drawn,
    linear,
    means,
    parameters,
    sigmoid,
    softmax,
)

ADD, MUL = ('channel_add',), ('channel_mul',)
FUSIONS = [ADD, MUL, ADD + MUL, MUL + ADD]


def transform(layers, context):
    h = linear(context, layers[0])
    mean = h.sum(1, keepdim=True) / h.shape[1]
    var = (h - mean).square().sum(1, keepdim=True) / h.shape[1]
    h = (h - mean) / (var + 1e-5).sqrt() * layers[1].weight.flatten() + layers[1].bias.flatten()
    return linear(h.clamp(min=0), layers[3])


def formula(block, x, pooling_type='att', fusion_types=ADD, init='paper', **_):
    context = means(x)
    if pooling_type == 'att':
        w, b = block.conv_mask.weight.flatten(), block.conv_mask.bias[0]
        images = [image.flatten(1).T for image in x]  # (P, C)
        weights = [softmax([w @ pixel + b for pixel in image]) for image in images]
        context = torch.stack([sum(a * p for a, p in zip(*pair)) for pair in zip(weights, images)])
    y = x
    if 'channel_mul' in fusion_types:  # first, whatever the order; both see the same context
        y = y * sigmoid(transform(block.channel_mul_conv, context), init)[:, :, None, None]
    if 'channel_add' in fusion_types:
        y = y + transform(block.channel_add_conv, context)[:, :, None, None]
    return y


@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('ratio', [1 / 4, 0.7])
@pytest.mark.parametrize('fusion_types', FUSIONS)
@pytest.mark.parametrize('pooling_type', ['att', 'avg'])
def test_formula(pooling_type, fusion_types, ratio, init):
    arguments = dict(ratio=ratio, pooling_type=pooling_type, fusion_types=fusion_types, init=init)
    agree(drawn(ContextBlock(8, **arguments)), formula, draw(2, 8, 4, 3), **arguments)


@pytest.mark.openmmlab
@pytest.mark.parametrize('ratio', [1 / 16, 1 / 4])
@pytest.mark.parametrize('fusion_types', FUSIONS)
@pytest.mark.parametrize('pooling_type', ['att', 'avg'])
def test_mmcv(pooling_type, fusion_types, ratio):
    theirs = pytest.importorskip('mmcv.cnn').ContextBlock
    arguments = (32, ratio, pooling_type, fusion_types)
    agree_with_peer(ContextBlock(*arguments), theirs(*arguments), draw(2, 32, 4, 5))


@pytest.mark.parametrize('fusion_types, factor', [(ADD, 1), (MUL, 0.5), (ADD + MUL, 0.5)])
def test_start(fusion_types, factor):
    block, x = ContextBlock(256, 1 / 16, fusion_types=fusion_types), torch.randn(2, 256, 4, 3)
    assert torch.equal(block(x), factor * x)
    assert abs(block.conv_mask.weight.std() / (2 / 256) ** 0.5 - 1) < 0.2  # Kaiming over fan-in
    assert block.conv_mask.bias == 0
    for kind in fusion_types:
        first = block.get_submodule(f'{kind}_conv')[0]
        assert 0.8 < first.weight.abs().max() * 256**0.5 <= 1
        assert 0 < first.bias.abs().max() * 256**0.5 <= 1


@pytest.mark.parametrize(
    'channels, r16, r4',
    [(256, 8753, 33473), (512, 33889, 132481), (1024, 133313, 527105), (2048, 528769, 2102785)],
)
def test_parameters(channels, r16, r4):
    assert parameters(ContextBlock, channels, 1 / 16) == r16
    assert parameters(ContextBlock, channels, 1 / 4) == r4


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(ratio=1 / 17), 'ContextBlock: ratio=0.058.*, allowed from 1 / in_channels=16'),
        (dict(pooling_type='max'), "ContextBlock: pooling_type='max', allowed 'avg', 'att'"),
        (dict(fusion_types=()), r'ContextBlock: fusion_types=\(\), allowed at least one'),
        (
            dict(fusion_types=('channel_sub',)),
            "ContextBlock: fusion_types='channel_sub', allowed 'channel_add', 'channel_mul'",
        ),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContextBlock(**(dict(in_channels=16, ratio=1 / 4) | arguments))


def test_one_hidden_channel_is_warned_of():
    with pytest.warns(UserWarning, match='in_channels=16 leaves one hidden channel'):
        block = drawn(ContextBlock(16, 1 / 16))
    first, second = (
        block.channel_add_conv(draw(2, 16, 1, 1)),
        block.channel_add_conv(draw(2, 16, 1, 1)),
    )
    assert torch.equal(first, second)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ContextBlock(16, 1 / 8)
