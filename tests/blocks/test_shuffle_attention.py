import pytest
import torch

from mmattn import ShuffleAttention
from tests.blocks.slow import agree, draw, drawn, parameters, sigmoid


def formula(block, x, groups=64, init='paper'):
    channels = x.shape[1]
    width, maps = channels // (2 * groups), []
    for c in range(channels):  # each group has `width` channels of the one kind, then of the other
        i, channel = c % width, x[:, c]
        mean = channel.sum((1, 2), keepdim=True) / channel[0].numel()
        if c // width % 2 == 0:
            z = block.cweight[0, i] * mean + block.cbias[0, i]
        else:
            var = (channel - mean).square().sum((1, 2), keepdim=True) / channel[0].numel()
            t = (channel - mean) / (var + 1e-5).sqrt() * block.gn.weight[i] + block.gn.bias[i]
            z = block.sweight[0, i] * t + block.sbias[0, i]
        maps.append(channel * sigmoid(z, init))
    half = channels // 2
    order = (
        range(channels) if init == 'identity' else [c // 2 + c % 2 * half for c in range(channels)]
    )
    return torch.stack([maps[c] for c in order], 1)


@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('groups', [1, 2, 3, 6])
@pytest.mark.parametrize('size', [(4, 3), (1, 1)])
def test_formula(size, groups, init):
    arguments = dict(groups=groups, init=init)
    agree(drawn(ShuffleAttention(12, **arguments)), formula, draw(2, 12, *size), **arguments)


def test_starts_at_sigmoid_of_one_with_dealt_channels():
    x = draw(2, 8, 4, 3)
    y = ShuffleAttention(8, groups=2).double()(x)
    torch.testing.assert_close(y, x[:, [0, 4, 1, 5, 2, 6, 3, 7]] * 0.7310585786300049)


def test_keys():
    shapes = {k: tuple(v.shape) for k, v in ShuffleAttention(256).state_dict().items()}
    own = ('cweight', 'cbias', 'sweight', 'sbias')
    assert shapes == dict.fromkeys(own, (1, 2, 1, 1)) | {'gn.weight': (2,), 'gn.bias': (2,)}


@pytest.mark.parametrize('channels, count', [(256, 12), (512, 24), (1024, 48), (2048, 96)])
def test_parameters(channels, count):
    assert parameters(ShuffleAttention, channels) == count


@pytest.mark.parametrize('channels, groups', [(2048, 64), (128, 64), (64, 32), (96, 16), (6, 1)])
def test_groups_where_none_are_given(channels, groups):
    assert ShuffleAttention(channels).groups == groups


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            dict(in_channels=64, groups=64),
            'ShuffleAttention: groups=64, but 2 \\* groups must divide in_channels=64; allowed 1, 2, 4, 8, 16, 32$',
        ),
        (dict(in_channels=7, groups=1), 'in_channels=7; allowed none: the channels are odd'),
        (dict(in_channels=8, groups=0), 'ShuffleAttention: groups=0, allowed whole numbers from 1'),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShuffleAttention(**arguments)
