import pytest
import torch

from mmattn import ResidualAttention
from mmattn.blocks.residual_attention import ResidualUnit
from tests.blocks.slow import agree, batch_norm, conv, draw, drawn, max_pool, resize, sigmoid


def act(x, norm):
    return batch_norm(x, norm).clamp(min=0)


def unit(block, x, stride=1):
    a = act(x, block.bn1)
    y = conv(act(conv(a, block.conv1), block.bn2), block.conv2, stride=stride, padding=1)
    y = conv(act(y, block.bn3), block.conv3)
    return y + (x if block.conv4 is None else conv(a, block.conv4, stride=stride))


def chain(blocks, x):
    for block in blocks:
        x = unit(block, x)
    return x


def formula(block, x, depth, p=1, t=2, r=1, init='paper'):
    x = chain(block.pre, x)
    trunk = chain(block.trunk, x)
    e = [x]
    for k in range(1, depth):
        e.append(chain(block.down[k - 1], max_pool(e[-1], 3, 2, padding=1)))
    b = chain(block.bottom, max_pool(e[-1], 3, 2, padding=1))
    for k in range(depth - 1, 0, -1):
        b = resize(b, e[k].shape[2:], align_corners=True)
        b = chain(block.up[k - 1], b + unit(block.skip[k - 1], e[k]))
    b = conv(act(resize(b, x.shape[2:], align_corners=True), block.gate.bn1), block.gate.conv1)
    mask = sigmoid(conv(act(b, block.gate.bn2), block.gate.conv2))
    if init == 'identity':
        mask = block.rho.scale * mask
    return chain(block.post, (1 + mask) * trunk)


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(
    'arguments',
    [
        *(dict(depth=depth) for depth in (1, 2, 3)),
        dict(depth=1, t=1, r=2, init='identity'),
        dict(depth=2, p=2, t=3, r=2, init='identity'),
        dict(depth=3, init='identity'),
    ],
)
def test_formula(arguments, train):
    block = drawn(ResidualAttention(4, **arguments), train)
    agree(block, formula, draw(2, 4, 9, 6), **arguments)


@pytest.mark.parametrize('size', [(1, 1), (1, 5), (3, 2)])
def test_maps_smaller_than_the_poolings(size):
    agree(drawn(ResidualAttention(4, depth=3)), formula, draw(2, 4, *size), depth=3)


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(
    'channels, stride, shortcut',
    [((8, None), 1, False), ((4, 8), 1, True), ((8, 8), 2, True), ((4, 8), 2, True)],
)
def test_unit(channels, stride, shortcut, train):
    block = drawn(ResidualUnit(*channels, stride), train)
    assert (block.conv4 is not None) == shortcut
    agree(block, unit, draw(2, channels[0], 5, 4), stride=stride)


@pytest.mark.parametrize('depth, p, t, r', [(1, 1, 2, 1), (2, 1, 2, 1), (3, 2, 1, 2)])
def test_units(depth, p, t, r):
    block = ResidualAttention(4, depth=depth, p=p, t=t, r=r)
    counts = dict(pre=p, trunk=t, post=p, bottom=2 * r, skip=depth - 1)
    assert {name: len(block.get_submodule(name)) for name in counts} == counts
    assert (
        [len(units) for units in block.down]
        == [len(units) for units in block.up]
        == [r] * (depth - 1)
    )
    gate = {k: tuple(v.shape) for k, v in block.gate.state_dict().items() if 'conv' in k}
    assert gate == {'conv1.weight': (4, 4, 1, 1), 'conv2.weight': (4, 4, 1, 1)}
    assert not any('conv4' in key or key.endswith('conv.bias') for key in block.state_dict())


def test_identity_start_zeroes_the_way_through_alone():
    block = ResidualAttention(8, depth=2, init='identity')
    for part, zero in dict(pre=True, trunk=True, post=True, bottom=False, skip=False).items():
        assert all((u.conv3.weight == 0).all() == zero for u in block.get_submodule(part)), part
    assert block.rho.scale == 0 and (block.gate.conv2.weight != 0).any()
    assert 'rho.scale' not in ResidualAttention(8, depth=2).state_dict()


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(in_channels=6), 'ResidualAttention: in_channels=6, allowed multiples of 4'),
        *(
            ({name: 0}, f'ResidualAttention: {name}=0, allowed whole numbers from 1')
            for name in ('depth', 'p', 't', 'r')
        ),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResidualAttention(**(dict(in_channels=8, depth=1) | arguments))


def test_refused_unit():
    with pytest.raises(ValueError, match='ResidualUnit: out_channels=6, allowed multiples of 4'):
        ResidualUnit(8, 6)


@pytest.mark.parametrize('depth, size', [(1, (2, 2)), (2, (4, 3)), (3, (1, 8)), (1, (1, 1))])
def test_training_on_one_image_that_pools_to_one_pixel(depth, size):
    block, x = ResidualAttention(4, depth=depth), torch.randn(1, 4, *size)
    with pytest.raises(
        ValueError, match='ResidualAttention: .* batch size 1 .* allowed 2 and more'
    ):
        block(x)
    assert block.eval()(x).shape == x.shape
    assert block.train()(torch.randn(1, 4, 9, 9)).shape == (1, 4, 9, 9)
