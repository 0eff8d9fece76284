import pytest
import torch
from torch.nn import functional as F

from mmattn import ops
from mmattn.ops import layout as formats

LAYOUTS = torch.contiguous_format, torch.channels_last


def draw(*shape, layout=torch.contiguous_format):
    return torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)


@pytest.mark.parametrize('to', LAYOUTS)
@pytest.mark.parametrize('of', LAYOUTS)
@pytest.mark.parametrize(
    'shape',
    [(2, 3, 4, 5), (1, 70, 9, 8), (0, 3, 4, 5), (2, 3, 1, 1), (2, 3, 16, 32), (2, 512, 3, 2)],
)
def test_as_adjacent(shape, of, to):
    """Values stay, the layout is that of the other map, and the gradient's that of the input."""
    y = draw(*shape, layout=of).requires_grad_()
    z = ops.match_memory_format(y, draw(*shape, layout=to))
    assert torch.equal(z, y)
    assert not len(z) or z.is_contiguous(memory_format=to)
    weight = torch.randn_like(z)
    z.backward(weight)
    assert torch.equal(y.grad, weight)


def test_the_gradient_has_the_layout_of_the_input():
    seen = []
    x = draw(2, 3, 4, 5).requires_grad_()
    x.register_hook(seen.append)
    y = ops.channels_last(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.backward(torch.randn_like(y))
    assert seen[0].is_contiguous()


@pytest.mark.parametrize('last', [True, False])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('batch', [0, 1, 3])
def test_project_is_a_convolution(batch, layout, last):
    x = draw(batch, 6, 5, 4, layout=layout).requires_grad_()
    weight, bias = draw(7, 6).requires_grad_(), draw(7).requires_grad_()
    y = ops.project(x, weight, bias, last=last)
    expected = F.conv2d(x, weight[:, :, None, None], bias)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)
    assert not batch or y.is_contiguous(memory_format=LAYOUTS[last])
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x, weight, bias), gradient)
    for found, grad in zip(torch.autograd.grad(y, (x, weight, bias), gradient), wanted):
        torch.testing.assert_close(found, grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_project_follows_autocast(dtype):
    x, weight, bias = torch.randn(2, 6, 5, 4), torch.randn(7, 6), torch.randn(7)
    tensors = [t.requires_grad_() for t in (x, weight, bias)]
    with torch.autocast('cpu', dtype):
        y = ops.project(*tensors)
    assert y.dtype == dtype
    y.float().square().sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.isfinite().all() for t in tensors)


@pytest.mark.parametrize('last', [True, False])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_project_is_no_view_and_its_gradient_needs_no_copy(layout, last):
    x, weight = draw(2, 6, 5, 4, layout=layout).requires_grad_(), draw(7, 6).requires_grad_()
    y = ops.project(x, weight, last=last)
    expected = F.conv2d(x, weight[:, :, None, None]).relu()
    torch.testing.assert_close(y.relu_(), expected, rtol=0, atol=1e-13)
    seen = []
    x.register_hook(seen.append)
    y.sum().backward()
    assert seen[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize('size', [(2, 5, 17, 31), (3, 4, 32, 32), (1, 1024, 3, 5), (0, 3, 20, 20)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_copies_of_several_parts(size, threads, dtype):
    before, x = torch.get_num_threads(), torch.randn(size).to(dtype)
    torch.set_num_threads(threads)
    try:
        last = formats.channels_last(x)
        back = formats.to_contiguous(last)
    finally:
        torch.set_num_threads(before)
    assert last.is_contiguous(memory_format=torch.channels_last) and back.is_contiguous()
    assert torch.equal(last, x) and torch.equal(back, x)
