import functools

import pytest
import torch
from torch.testing import assert_close

from mmattn import LSKA
from tests.blocks.layers import large_kernel
from tests.blocks.slow import agree, conv, draw, drawn, parameters

RULE = {  # kernel: first pair, second pair, its dilation
    7: (3, 3, 2),
    11: (3, 5, 2),
    15: (3, 7, 2),
    17: (5, 5, 3),
    19: (3, 9, 2),
    23: (5, 7, 3),
    29: (5, 9, 3),
    35: (5, 11, 3),
    41: (5, 13, 3),
    47: (5, 15, 3),
    53: (5, 17, 3),
    59: (5, 19, 3),
}


def respond(block, x):
    """Four depthwise convolutions in a row, as the rule has them, then a 1x1."""
    first, second, d = RULE[block.kernel_size]
    p, q, groups = first // 2, d * (second // 2), x.shape[1]
    for layer, padding, dilation in (
        (block.conv0h, (0, p), 1),
        (block.conv0v, (p, 0), 1),
        (block.conv_spatial_h, (0, q), (1, d)),
        (block.conv_spatial_v, (q, 0), (d, 1)),
    ):
        x = conv(x, layer, padding=padding, dilation=dilation, groups=groups)
    return conv(x, block.conv1)


formula = functools.partial(large_kernel.formula, respond=respond)


@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('project', [False, True])
@pytest.mark.parametrize('kernel_size', [7, 23])
@pytest.mark.parametrize('size', [(4, 3), (1, 1), (1, 9), (8, 1)])
def test_formula(size, kernel_size, project, init):
    block = LSKA(3, kernel_size=kernel_size, project=project, init=init)
    agree(drawn(block), formula, draw(2, 3, *size))


@pytest.mark.parametrize('kernel_size', RULE)
@pytest.mark.parametrize('size', [(2, 31), (30, 2)])
def test_formula_of_every_kernel(size, kernel_size):
    agree(drawn(LSKA(2, kernel_size=kernel_size)), formula, draw(1, 2, *size))


@pytest.mark.parametrize('kernel_size', RULE)
def test_it_sees_as_many_rows_and_columns(kernel_size):
    block = drawn(LSKA(2, kernel_size=kernel_size))
    x = draw(1, 2, 61, 61).requires_grad_()
    found = x
    for layer in block.children():  # in the order of their calls
        found = layer(found)
    seen = torch.autograd.grad(found[0, 0, 30, 30], x)[0][0].sum(0).nonzero()
    reach = kernel_size // 2
    assert torch.equal(seen.amin(0), torch.tensor([30 - reach, 30 - reach]))
    assert torch.equal(seen.amax(0), torch.tensor([30 + reach, 30 + reach]))


def test_recording():
    block = LSKA(6, kernel_size=11)
    x, found = large_kernel.recorded_once(block, 'response', (2, 6, 5, 4))
    assert_close(found, respond(block, x))
    assert_close(block(x), x * found)


@pytest.mark.parametrize(
    'arguments, count',
    [
        (dict(kernel_size=7), 69_888),
        (dict(), 72_960),
        (dict(kernel_size=53), 78_080),
        (dict(project=True), 204_544),
    ],
)
def test_number_of_parameters(arguments, count):
    assert parameters(LSKA, 256, **arguments) == count


def test_keys():
    shapes = {
        'conv0h.weight': (6, 1, 1, 3),
        'conv0h.bias': (6,),
        'conv0v.weight': (6, 1, 3, 1),
        'conv0v.bias': (6,),
        'conv_spatial_h.weight': (6, 1, 1, 5),
        'conv_spatial_h.bias': (6,),
        'conv_spatial_v.weight': (6, 1, 5, 1),
        'conv_spatial_v.bias': (6,),
        'conv1.weight': (6, 6, 1, 1),
        'conv1.bias': (6,),
    }
    block = LSKA(6, kernel_size=11)
    assert {k: tuple(v.shape) for k, v in block.state_dict().items()} == shapes
    extra = set(LSKA(6, kernel_size=11, project=True).state_dict()) - set(shapes)
    assert extra == {'proj_1.weight', 'proj_1.bias', 'proj_2.weight', 'proj_2.bias'}


def test_start():
    block = LSKA(512, kernel_size=11)
    for layer, fan_out in (block.conv0h, 3), (block.conv_spatial_v, 5), (block.conv1, 512):
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.06)
    assert all((layer.bias == 0).all() for layer in block.children())


@pytest.mark.parametrize('project, more', [(False, 1), (True, 1)])
def test_memory(project, more):
    large_kernel.keeps_few_maps(LSKA(8, project=project), more)


@pytest.mark.parametrize(
    'check', [large_kernel.hooks_are_called, large_kernel.formats_stay, large_kernel.frozen]
)
@pytest.mark.parametrize('project', [False, True])
def test_as_the_other_blocks(project, check):
    check(LSKA(8, project=project))


@pytest.mark.parametrize('project', [False, True])
def test_half_precision(project):
    large_kernel.half(functools.partial(LSKA, 8, project=project))


@pytest.mark.parametrize('kernel_size', [1, 2, 3, 5, 8, 9, 13, 21, 22, 25, 27, 31, 52])
def test_refused_kernels(kernel_size):
    message = rf'LSKA: {kernel_size=}, allowed 7, 11, 15, 17, 19, 23, 29, 35, 41, 47, 53'
    with pytest.raises(ValueError, match=message):
        LSKA(8, kernel_size=kernel_size)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(kernel_size=0), 'LSKA: kernel_size=0, allowed whole numbers from 1'),
        (dict(kernel_size=(7, 7)), r'LSKA: kernel_size=\(7, 7\), allowed whole numbers from 1'),
        (dict(project='yes'), "LSKA: project='yes', allowed False, True"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LSKA(8, **arguments)
