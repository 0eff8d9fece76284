import pytest
import torch
from torch.nn import functional as F

from mmattn.ops import depthwise, depthwise_conv

FORMATS = torch.contiguous_format, torch.channels_last
KERNELS = (
    ((5, 5), (1, 1)),
    ((7, 7), (3, 3)),
    ((3, 9), (2, 4)),
    ((1, 7), (1, 3)),
    ((1, 17), (1, 1)),
    ((1, 3), (1, 2)),
    ((7, 1), (3, 1)),
    ((1, 1), (1, 1)),
)


def both(x, weight, bias, dilation):
    """Output and gradients, ours and torch's."""
    tensors = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    padding = [d * (k // 2) for d, k in zip(dilation, weight.shape[2:])]
    wanted = F.conv2d(x, weight, bias, 1, padding, dilation, x.shape[1])
    found = depthwise_conv(x, weight, bias, dilation)
    cotangent = torch.randn_like(wanted)
    return tuple((y, *torch.autograd.grad(y, tensors, cotangent)) for y in (found, wanted))


def draw(shape, kernel, dtype=torch.float64):
    channels = shape[1]
    shapes = shape, (channels, 1, *kernel), (channels,)
    return [torch.randn(s, dtype=dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize('values', [1, 200, 1 << 20])
@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('kernel, dilation', KERNELS)
@pytest.mark.parametrize('size', [(1, 1), (6, 5), (2, 31), (20, 1)])
def test_as_torch(monkeypatch, size, kernel, dilation, form, values):
    monkeypatch.setattr(depthwise, '_VALUES', values)
    x, weight, bias = draw((3, 4, *size), kernel)
    x = x.detach().contiguous(memory_format=form).requires_grad_()
    for found, wanted in zip(*both(x, weight, bias, dilation)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('kernel, dilation', KERNELS)
def test_precisions(kernel, dilation, dtype):
    for found, wanted in zip(*both(*draw((2, 8, 9, 11), kernel, dtype), dilation)):
        assert found.dtype == dtype
        scale = wanted.float().abs().max()
        bound = 16 * torch.finfo(dtype).eps
        assert (found.float() - wanted.float()).abs().max() <= bound * scale


@pytest.mark.parametrize('shape', [(0, 4, 3, 3), (2, 1, 5, 6)])
def test_empty_batch_and_one_channel(shape):
    for found, wanted in zip(*both(*draw(shape, (7, 7)), (3, 3))):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize('form', FORMATS)
def test_x_is_saved_as_it_is_and_its_gradient_has_its_format(form):
    x, weight, bias = draw((2, 4, 6, 5), (7, 7))
    x = x.detach().contiguous(memory_format=form).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = depthwise_conv(x, weight, bias, (3, 3))
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), weight.data_ptr()}
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.is_contiguous(memory_format=form)


def test_without_bias_and_with_frozen_weights():
    x, weight, bias = draw((2, 4, 6, 5), (7, 7))
    for inputs in (
        (x, weight, None),
        (x.detach(), weight, bias),
        (x, weight.detach(), bias.detach()),
    ):
        for found, wanted in zip(*both(*inputs, (3, 3))):
            torch.testing.assert_close(found, wanted)


def test_the_gradient_of_a_weight_sums_exactly():
    """In fp32 over many positions, as exact as torch's."""
    x, weight, bias = draw((2, 4, 64, 64), (5, 5), torch.float32)
    found = depthwise_conv(x, weight, bias)
    wanted = F.conv2d(x.double(), weight.double(), bias.double(), padding=2, groups=4)
    cotangent = torch.randn_like(found)
    a = torch.autograd.grad(found, weight, cotangent)[0]
    b = torch.autograd.grad(wanted, weight, cotangent.double())[0]
    assert (a - b).abs().max() < 1e-6 * 2 * 64 * 64
