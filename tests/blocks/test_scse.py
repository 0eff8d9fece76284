import pytest
import torch

from mmattn import SCSE
from tests.blocks.slow import agree, conv, draw, drawn, linear, means, sigmoid


def formula(block, x, fusion='max', init='paper', **_):
    times = 'paper' if fusion == 'add' else init  # 0.5 x + 0.5 x is the identity already
    if fusion != 'spatial':
        hidden = linear(means(x), block.channel.fc1).clamp(min=0)
        c = x * sigmoid(linear(hidden, block.channel.fc2), times)[:, :, None, None]
    if fusion != 'channel':
        s = x * sigmoid(conv(x, block.spatial.conv), times)
    if fusion == 'max':
        return torch.where(c > s, c, s)
    return {'add': lambda: c + s, 'channel': lambda: c, 'spatial': lambda: s}[fusion]()


@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('reduction', [2, 3])
@pytest.mark.parametrize('fusion', ['max', 'add', 'channel', 'spatial'])
def test_formula(fusion, reduction, init):
    arguments = dict(fusion=fusion, reduction=reduction, init=init)
    agree(drawn(SCSE(6, **arguments)), formula, draw(2, 6, 3, 4), **arguments)


@pytest.mark.parametrize(
    'fusion, keys',
    [
        ('max', 'channel spatial'),
        ('add', 'channel spatial'),
        ('channel', 'channel'),
        ('spatial', 'spatial'),
    ],
)
def test_keys(fusion, keys):
    layers = {'channel': ('fc1', 'fc2'), 'spatial': ('conv',)}
    found = set(SCSE(6, fusion=fusion).state_dict())
    expected = {
        f'{gate}.{layer}.{kind}'
        for gate in keys.split()
        for layer in layers[gate]
        for kind in ('weight', 'bias')
    }
    assert found == expected


def test_the_default_is_the_authors_code():
    block, x = drawn(SCSE(4)), draw(1, 4, 2, 3)
    agree(block, formula, x, fusion='max')
    assert block.channel.fc1.out_features == 2


def test_starts_as_torch_layers_do():
    block = SCSE(256)
    for layer in block.channel.fc1, block.channel.fc2, block.spatial.conv:
        bound = layer.weight[0].numel() ** -0.5
        assert 0.8 * bound < layer.weight.abs().max() <= bound
        assert 0 < layer.bias.abs().max() <= bound


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(in_channels=1), 'SCSE: reduction=2, allowed 1..in_channels=1'),
        (
            dict(in_channels=4, fusion='sum'),
            "SCSE: fusion='sum', allowed 'max', 'add', 'channel', 'spatial'",
        ),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SCSE(**arguments)
