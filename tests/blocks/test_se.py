import pytest
import torch

from mmattn import SE
from tests.blocks.slow import agree, draw, drawn, linear, parameters, sigmoid


def formula(block, x, init='paper', **_):
    z = torch.stack([torch.stack([c.sum() / c.numel() for c in image]) for image in x])
    s = sigmoid(linear(linear(z, block.fc1).clamp(min=0), block.fc2), init)
    return torch.stack(
        [torch.stack([c * g for c, g in zip(image, gates)]) for image, gates in zip(x, s)]
    )


@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('reduction, hidden', [(3, 2), (2, 3), (4, 1), (1, 7)])
def test_formula(reduction, hidden, bias, init):
    arguments = dict(reduction=reduction, bias=bias, init=init)
    block = drawn(SE(7, **arguments))
    shapes = {'fc1.weight': (hidden, 7), 'fc2.weight': (7, hidden)}
    shapes |= {'fc1.bias': (hidden,), 'fc2.bias': (7,)} if bias else {}
    assert {k: tuple(v.shape) for k, v in block.state_dict().items()} == shapes
    agree(block, formula, draw(2, 7, 3, 4), **arguments)


def test_starts_as_linear_layers_do():
    block = SE(256)
    for layer in block.fc1, block.fc2:
        bound = layer.in_features**-0.5
        for value in layer.weight, layer.bias:
            assert 0.8 * bound < value.abs().max() <= bound


@pytest.mark.parametrize(
    'channels, count', [(256, 8192), (512, 32768), (1024, 131072), (2048, 524288)]
)
def test_parameters(channels, count):
    assert parameters(SE, channels, bias=False) == count
    assert parameters(SE, channels) == count + channels + channels // 16


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(in_channels=8), 'SE: reduction=16, allowed 1..in_channels=8'),
        (dict(in_channels=8, reduction=0), 'SE: reduction=0, allowed whole numbers from 1'),
        (dict(in_channels=8, reduction=2.0), 'SE: reduction=2.0, allowed whole numbers from 1'),
        (dict(in_channels=0), 'SE: in_channels=0, allowed whole numbers from 1'),
        (dict(in_channels=16, init='zero'), "SE: init='zero', allowed 'paper', 'identity'"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SE(**arguments)


def test_refused_input():
    with pytest.raises(ValueError, match=r'SE: input \(1, 8, 3, 3\), allowed \(N, 16, H, W\)'):
        SE(16)(torch.randn(1, 8, 3, 3))
