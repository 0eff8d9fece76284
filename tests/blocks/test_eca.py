import pytest
import torch

from mmattn import ECA
from tests.blocks.slow import agree, draw, drawn, means, parameters, sigmoid


def formula(block, x, init='paper', circular=False):
    """The gate of channel c from the means of channels c - r to c + r, one product at a time."""
    z, (weight,) = means(x), block.conv.weight[0]
    channels, reach = z.shape[1], len(weight) // 2
    gates = []
    for c in range(channels):
        neighbours = range(c - reach, c + reach + 1)
        if circular:
            terms = [w * z[:, n % channels] for w, n in zip(weight, neighbours)]
        else:
            terms = [w * z[:, n] for w, n in zip(weight, neighbours) if 0 <= n < channels]
        gates.append(sigmoid(sum(terms), init))
    return x * torch.stack(gates, 1)[:, :, None, None]


@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('circular', [False, True])
@pytest.mark.parametrize('kernel_size', [1, 3, 7])
@pytest.mark.parametrize('size', [(4, 3), (1, 1)])
def test_formula(size, kernel_size, circular, init):
    arguments = dict(circular=circular, init=init)
    block = drawn(ECA(6, kernel_size=kernel_size, **arguments))
    agree(block, formula, draw(2, 6, *size), **arguments)


@pytest.mark.parametrize(
    'channels, kernel_size',
    [(1, 1), (7, 1), (8, 3), (64, 3), (127, 3), (128, 5), (256, 5), (2047, 5), (2048, 7)],
)
def test_the_kernel_follows_the_channels(channels, kernel_size):
    assert ECA(channels).kernel_size == kernel_size
    assert parameters(ECA, channels) == kernel_size


def test_keys():
    assert {k: tuple(v.shape) for k, v in ECA(256).state_dict().items()} == {
        'conv.weight': (1, 1, 5)
    }


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(kernel_size=4), 'ECA: kernel_size=4, allowed odd numbers'),
        (dict(kernel_size=0), 'ECA: kernel_size=0, allowed whole numbers from 1'),
        (
            dict(kernel_size=19, circular=True),
            r'ECA: kernel_size=19 with circular=True, allowed up to 2 \* in_channels=8 \+ 1',
        ),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ECA(8, **arguments)
