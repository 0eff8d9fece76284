import pytest
import torch

from mmattn import ops


@pytest.mark.parametrize('dim', [1, 2])
@pytest.mark.parametrize('length', [1, 7, 36, 60])
@pytest.mark.parametrize('ties', [False, True])
def test_first_max(dim, length, ties):
    """The value, and all of the gradient at the first of equals."""
    x = torch.randn(2, length, 5, dtype=torch.float64)
    x = x.round() if ties else x
    x = x.transpose(1, 2) if dim == 2 else x
    x.requires_grad_()
    y = ops.first_max(x, dim)
    assert torch.equal(y, x.amax(dim)) and torch.equal(ops.first_max(x.detach(), dim), y)
    weight = torch.randn_like(y)
    y.backward(weight)
    first = x.detach().argmax(dim, keepdim=True)
    expected = torch.zeros_like(x).scatter(dim, first, weight.unsqueeze(dim))
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize('dim', [0, 1, 2, 3])
@pytest.mark.parametrize('order', [(0, 2, 3, 1), (3, 1, 0, 2), (0, 1, 3, 2)])
def test_first_max_in_the_order_of_storage(dim, order):
    """Of a map with other strides, whose gradient has them, too."""
    axes = sorted(range(4), key=order.index)
    x = torch.randint(0, 4, (6, 7, 4, 9)).double().permute(axes).requires_grad_()
    y = ops.first_max(x, dim)
    assert torch.equal(y, x.amax(dim))
    weight = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, x, weight)
    first = x.detach().argmax(dim, keepdim=True)
    expected = torch.zeros_like(x).scatter(dim, first, weight.unsqueeze(dim))
    assert torch.equal(grad, expected) and grad.stride() == x.stride()


def test_first_max_of_nan():
    x = torch.tensor([[1.0, float('nan'), 3.0, 2.0]])
    assert ops.first_max(x, 1).isnan() and ops.first_max(x.requires_grad_(), 1).isnan()


@pytest.mark.parametrize('channels', [1, 3, 64])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_channel_mean(channels, dtype):
    x = (100 * torch.randn(2, channels, 4, 5)).to(dtype)
    expected = x.mean(1, keepdim=True)
    torch.testing.assert_close(ops.channel_mean(x), expected)
    torch.testing.assert_close(ops.channel_mean(x.clone().requires_grad_()), expected)
