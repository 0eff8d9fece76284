import functools

import pytest
import torch
from torch.testing import assert_close

from mmattn import LSK
from tests.blocks.layers import large_kernel
from tests.blocks.slow import agree, conv, draw, drawn, parameters, sigmoid


def select(block, x):
    """Both kernels, one after the other, and their weights."""
    channels = x.shape[1]
    near = conv(x, block.conv0, padding=2, groups=channels)
    far = conv(near, block.conv_spatial, padding=9, dilation=3, groups=channels)
    u = conv(near, block.conv1), conv(far, block.conv2)
    both = torch.cat(u, 1).unbind(1)
    largest = both[0]
    for other in both[1:]:
        largest = torch.where(other > largest, other, largest)
    maps = torch.stack([sum(both) / len(both), largest], 1)
    return u, sigmoid(conv(maps, block.conv_squeeze, padding=3))


def respond(block, x):
    u, weights = select(block, x)
    return conv(u[0] * weights[:, :1] + u[1] * weights[:, 1:], block.conv)


formula = functools.partial(large_kernel.formula, respond=respond)


@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('project', [False, True])
@pytest.mark.parametrize('size', [(4, 3), (1, 1), (1, 5), (7, 1)])
@pytest.mark.parametrize('channels', [2, 5])
def test_formula(channels, size, project, init):
    agree(drawn(LSK(channels, project=project, init=init)), formula, draw(2, channels, *size))


@pytest.mark.parametrize('size', [(2, 23), (21, 2)])
def test_formula_at_full_reach(size):
    agree(drawn(LSK(3)), formula, draw(1, 3, *size))


def test_it_sees_23_rows_and_columns():
    block, x = drawn(LSK(3)), draw(1, 3, 33, 33).requires_grad_()
    near = block.conv_spatial(block.conv0(x))[0, :, 16, 16].sum()
    seen = torch.autograd.grad(near, x)[0][0, 0]
    assert torch.equal(seen.nonzero().aminmax(dim=0).min, torch.tensor([5, 5]))
    assert torch.equal(seen.nonzero().aminmax(dim=0).max, torch.tensor([27, 27]))


def test_the_first_of_equal_maxima_has_the_gradient():
    """All channels of both maps are equal, as on an empty image."""
    block = drawn(LSK(4))
    with torch.no_grad():
        for layer in block.conv1, block.conv2:
            layer.weight.zero_()
            layer.bias.fill_(0.7)
    agree(block, formula, draw(2, 4, 3, 4))


def test_the_weights_need_not_sum_to_one():
    block = LSK(6)
    x, found = large_kernel.recorded_once(block, 'selection', (2, 2, 5, 4))
    assert_close(found, select(block, x)[1])
    assert (found.sum(1) - 1).abs().max() > 0.05


@pytest.mark.parametrize(
    'channels, project, count',
    [(256, False, 118_470), (512, False, 433_350), (1024, False, 1_652_934), (256, True, 250_054)],
)
def test_number_of_parameters(channels, project, count):
    assert parameters(LSK, channels, project=project) == count


def test_keys():
    shapes = {
        'proj_1.weight': (7, 7, 1, 1),
        'proj_1.bias': (7,),
        'proj_2.weight': (7, 7, 1, 1),
        'proj_2.bias': (7,),
        'conv0.weight': (7, 1, 5, 5),
        'conv0.bias': (7,),
        'conv_spatial.weight': (7, 1, 7, 7),
        'conv_spatial.bias': (7,),
        'conv1.weight': (3, 7, 1, 1),
        'conv1.bias': (3,),
        'conv2.weight': (3, 7, 1, 1),
        'conv2.bias': (3,),
        'conv_squeeze.weight': (2, 2, 7, 7),
        'conv_squeeze.bias': (2,),
        'conv.weight': (7, 3, 1, 1),
        'conv.bias': (7,),
    }
    found = {k: tuple(v.shape) for k, v in LSK(7, project=True).state_dict().items()}
    assert found == shapes
    plain = {k: v for k, v in shapes.items() if not k.startswith('proj_')}
    assert {k: tuple(v.shape) for k, v in LSK(7).state_dict().items()} == plain


def test_start():
    block = LSK(512)
    assert block.conv0.weight.std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.05)
    assert block.conv_spatial.weight.std().item() == pytest.approx((2 / 49) ** 0.5, rel=0.05)
    assert block.conv1.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert block.conv.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.05)
    assert all((layer.bias == 0).all() for layer in block.children())


@pytest.mark.parametrize('project, more', [(False, 0), (True, 1)])
def test_memory(project, more):
    large_kernel.keeps_few_maps(LSK(8, project=project), more)


@pytest.mark.parametrize(
    'check', [large_kernel.hooks_are_called, large_kernel.formats_stay, large_kernel.frozen]
)
@pytest.mark.parametrize('project', [False, True])
def test_as_the_other_blocks(project, check):
    check(LSK(8, project=project))


@pytest.mark.parametrize('project', [False, True])
def test_half_precision(project):
    large_kernel.half(functools.partial(LSK, 8, project=project))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(in_channels=1), 'LSK: in_channels=1, allowed 2 and more'),
        (dict(in_channels=8, project=1.5), 'LSK: project=1.5, allowed False, True'),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LSK(**arguments)
