import pytest
import torch

from mmattn import CBAM
from tests.blocks.slow import (
    agree,
    batch_norm,
    conv,
    draw,
    drawn,
    linear,
    means,
    parameters,
    sigmoid,
)


def pooled(x, kind):
    values = []
    for image in x:
        for channel in image:
            pixels = list(channel.flatten())
            if kind == 'max':
                values.append(max(pixels))
            elif kind == 'lp':
                values.append(sum(v * v for v in pixels) ** 0.5)
            else:
                values.append(sum(v.exp() for v in pixels).log())
    return means(x) if kind == 'avg' else torch.stack(values).reshape(x.shape[:2])


def formula(block, x, kernel_size=7, spatial=True, pool_types=('avg', 'max'), init='paper', **_):
    z = 0
    for kind in pool_types:  # biases count once per pool
        hidden = linear(pooled(x, kind), block.channel.fc1).clamp(min=0)
        z = z + linear(hidden, block.channel.fc2)
    x = x * sigmoid(z, init)[:, :, None, None]
    if not spatial:
        return x
    m = torch.stack([x.amax(1), x.sum(1) / x.shape[1]], 1)
    z = conv(m, block.spatial.conv, padding=(kernel_size - 1) // 2)
    return x * sigmoid(batch_norm(z, block.spatial.bn, momentum=0.01), init)


FORMS = [
    dict(),
    dict(kernel_size=3, reduction=4),
    dict(kernel_size=1),
    dict(spatial=False),
    *(dict(pool_types=(kind,), kernel_size=3) for kind in ('avg', 'max', 'lp', 'lse')),
    dict(pool_types=('lse', 'lp', 'max', 'avg'), kernel_size=3),
]


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('form', FORMS)
def test_formula(form, init, train):
    arguments = dict(reduction=3, init=init) | form
    block = drawn(CBAM(9, **arguments), train)
    agree(block, formula, draw(2, 9, 4, 5), **arguments)


def test_keys():
    channel = {f'channel.{layer}.{kind}' for layer in ('fc1', 'fc2') for kind in ('weight', 'bias')}
    norm = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    assert set(CBAM(16, spatial=False).state_dict()) == channel
    spatial = {f'spatial.bn.{kind}' for kind in norm} | {'spatial.conv.weight'}
    assert set(CBAM(16).state_dict()) == channel | spatial


def test_the_spatial_gate_starts_at_one_half_exactly():
    block, x = CBAM(32), torch.randn(2, 32, 4, 3)
    hidden = [block.channel.fc1(pool).relu() for pool in (x.mean((2, 3)), x.amax((2, 3)))]
    s = (block.channel.fc2(hidden[0]) + block.channel.fc2(hidden[1])).sigmoid()
    for mode in block.train(), block.eval():
        torch.testing.assert_close(mode(x), x * s[:, :, None, None] * 0.5)
        assert (mode.spatial_gate(x) == 0.5).all()


def test_starts_as_in_the_authors_resnet():
    block = CBAM(256, kernel_size=31)
    for layer in block.channel.fc1, block.channel.fc2:
        assert 0.8 < layer.weight.abs().max() * layer.in_features**0.5 <= 1
        assert (layer.bias == 0).all()
    assert abs(block.spatial.conv.weight.std() / (2 / 31**2) ** 0.5 - 1) < 0.1  # over fan-out
    assert block.spatial.bn.weight == 0 and block.spatial.bn.bias == 0


@pytest.mark.parametrize(
    'channels, count', [(256, 8564), (512, 33412), (1024, 132260), (2048, 526564)]
)
def test_parameters(channels, count):
    assert parameters(CBAM, channels) == count


def test_lp_of_an_empty_channel_has_a_gradient():
    x = torch.zeros(1, 4, 3, 2, requires_grad=True)
    CBAM(4, reduction=2, pool_types=('lp',))(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(in_channels=8), 'CBAM: reduction=16, allowed 1..in_channels=8'),
        (dict(kernel_size=4), 'CBAM: kernel_size=4, allowed odd numbers'),
        (dict(kernel_size=0), 'CBAM: kernel_size=0, allowed whole numbers from 1'),
        (dict(pool_types=()), r'CBAM: pool_types=\(\), allowed at least one'),
        (
            dict(pool_types=('avg', 'min')),
            "CBAM: pool_types='min', allowed 'avg', 'max', 'lp', 'lse'",
        ),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CBAM(**(dict(in_channels=32) | arguments))
