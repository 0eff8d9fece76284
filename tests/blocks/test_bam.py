import pytest
import torch
from torch import nn

from mmattn import BAM
from tests.blocks.slow import (
    agree,
    batch_norm,
    conv,
    conv_norm,
    draw,
    drawn,
    linear,
    means,
    parameters,
    sigmoid,
)


def formula(block, x, num_convs=2, dilation=4, fusion='add', init='paper', **_):
    channel, spatial = block.channel, block.spatial
    h = batch_norm(linear(means(x), channel.fc1), channel.bn).clamp(min=0)
    by_channel = linear(h, channel.fc2)
    m = conv_norm(x, spatial.reduce).clamp(min=0)
    for i in range(num_convs):
        m = conv_norm(m, spatial.convs[i], padding=dilation, dilation=dilation).clamp(min=0)
    by_place = conv(m, spatial.final)
    offset, out = 0.5 if init == 'identity' else 1, []
    for c in range(x.shape[1]):
        a, b = by_channel[:, c, None, None], by_place[:, 0]
        out.append(x[:, c] * (offset + sigmoid(a + b if fusion == 'add' else a * b)))
    return torch.stack(out, 1)


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('fusion', ['add', 'mul'])
@pytest.mark.parametrize(
    'form', [dict(), dict(num_convs=1, dilation=2), dict(num_convs=3, dilation=1, reduction=2)]
)
def test_formula(form, fusion, init, train):
    arguments = dict(reduction=4, fusion=fusion, init=init) | form
    agree(drawn(BAM(8, **arguments), train), formula, draw(3, 8, 7, 4), **arguments)


@pytest.mark.parametrize('size', [(5, 11), (11, 5), (7, 3)])
def test_pools_the_whole_map(size):
    """The authors' code pools a square, and fails on a map that is high or more than twice as wide."""
    arguments = dict(reduction=2, num_convs=1, dilation=1, fusion='mul')
    agree(drawn(BAM(4, **arguments)), formula, draw(1, 4, *size), **arguments)


def test_keys():
    norm = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    layers = ['channel.fc1', 'channel.fc2', 'spatial.reduce.conv', 'spatial.final']
    layers += ['spatial.convs.0.conv', 'spatial.convs.1.conv']
    norms = ['channel.bn', 'spatial.reduce.bn', 'spatial.convs.0.bn', 'spatial.convs.1.bn']
    expected = {f'{layer}.{kind}' for layer in layers for kind in ('weight', 'bias')}
    assert set(BAM(16).state_dict()) == expected | {f'{n}.{kind}' for n in norms for kind in norm}


def test_starts_as_in_the_authors_resnet():
    block = BAM(512)
    for layer in block.channel.fc1, block.channel.fc2:
        assert 0.8 < layer.weight.abs().max() * layer.in_features**0.5 <= 1
    reduce, final = block.spatial.reduce.conv, block.spatial.final
    dilated = [layer.conv for layer in block.spatial.convs]
    for layer, fan_out in (reduce, 32), *((layer, 32 * 9) for layer in dilated):
        assert abs(layer.weight.std() / (2 / fan_out) ** 0.5 - 1) < 0.1
    assert 0.8 < final.weight.std() < 2  # sqrt(2) of 32 values
    for layer in block.channel.fc1, block.channel.fc2, reduce, final, *dilated:
        assert (layer.bias == 0).all()
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == 4 and all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)


@pytest.mark.parametrize('fusion, zeros', [('add', {'final', 'fc2'}), ('mul', {'final'})])
def test_identity_start_can_learn(fusion, zeros):
    """Two zero factors would have zero gradients for ever."""
    block = BAM(32, fusion=fusion, init='identity')
    layers = {'final': block.spatial.final, 'fc2': block.channel.fc2}
    assert {name for name, layer in layers.items() if (layer.weight == 0).all()} == zeros
    block(torch.randn(2, 32, 4, 3)).square().sum().backward()
    assert (block.spatial.final.weight.grad != 0).any()


@pytest.mark.parametrize('channels, count', [(256, 17361), (512, 68513), (1024, 272193)])
def test_parameters(channels, count):
    assert parameters(BAM, channels) == count


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(in_channels=8), 'BAM: reduction=16, allowed 1..in_channels=8'),
        (dict(num_convs=0), 'BAM: num_convs=0, allowed whole numbers from 1'),
        (dict(dilation=0), 'BAM: dilation=0, allowed whole numbers from 1'),
        (dict(fusion='max'), "BAM: fusion='max', allowed 'add', 'mul'"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BAM(**(dict(in_channels=32) | arguments))


def test_training_on_one_image():
    block, x = BAM(32), torch.randn(1, 32, 5, 4)
    with pytest.raises(ValueError, match='BAM: .* batch size 1 .* in training, allowed 2 and more'):
        block(x)
    assert block.eval()(x).shape == x.shape
