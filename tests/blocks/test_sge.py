import pytest
import torch

from mmattn import SGE
from tests.blocks.slow import agree, draw, drawn, parameters, sigmoid


def formula(block, x, groups=64, init='paper'):
    channels, height, width = x.shape[1:]
    pixels, size, out = height * width, channels // groups, []
    for image in x:
        for g in range(groups):
            part = image[g * size : (g + 1) * size].flatten(1)  # (C / G, P)
            mean = sum(part[:, p] for p in range(pixels)) / pixels
            t = [part[:, p] @ mean for p in range(pixels)]
            middle = sum(t) / pixels
            t = [v - middle for v in t]
            if pixels > 1:  # the unbiased deviation, and eps beside it
                deviation = (sum(v * v for v in t) / (pixels - 1)) ** 0.5
                t = [v / (deviation + 1e-5) for v in t]
            w, b = block.weight[0, g, 0, 0], block.bias[0, g, 0, 0]
            out += [
                torch.stack([part[:, p] * sigmoid(w * t[p] + b, init) for p in range(pixels)], 1)
            ]
    return torch.stack(out).reshape(x.shape)


@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('groups', [1, 2, 4, 8])
@pytest.mark.parametrize('size', [(4, 3), (1, 2), (1, 1)])
def test_formula(size, groups, init):
    arguments = dict(groups=groups, init=init)
    agree(drawn(SGE(8, **arguments)), formula, draw(2, 8, *size), **arguments)


@pytest.mark.parametrize('scale', [1e-3, 1e-2])
def test_eps_beside_the_deviation(scale):
    """On a faint map the deviation is as small as eps, so where eps stands shows."""
    agree(drawn(SGE(4, groups=2)), formula, scale * draw(2, 4, 3, 2), groups=2)


def test_the_gate_starts_at_sigmoid_of_one():
    x = draw(2, 64, 4, 3)
    torch.testing.assert_close(SGE(64).double()(x), x * 0.7310585786300049)


def test_keys_and_parameters():
    shapes = {k: tuple(v.shape) for k, v in SGE(256).state_dict().items()}
    assert shapes == {'weight': (1, 64, 1, 1), 'bias': (1, 64, 1, 1)}
    assert parameters(SGE, 2048) == 128


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            dict(in_channels=96, groups=64),
            'SGE: groups=64, but groups must divide in_channels=96; allowed .*32, 48, 96$',
        ),
        (dict(in_channels=8, groups=0), 'SGE: groups=0, allowed whole numbers from 1'),
        (
            dict(in_channels=8, groups=16),
            'groups=16, but groups must divide in_channels=8; allowed 1, 2, 4, 8$',
        ),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SGE(**arguments)


def test_groups_follow_from_the_channels():
    """The authors' 64 where they divide them, else the largest power of 2."""
    for channels, groups in (256, 64), (64, 64), (96, 32), (24, 8), (7, 1):
        assert SGE(channels).groups == groups
