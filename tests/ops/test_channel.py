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


@pytest.mark.parametrize('groups, half', [(1, 3), (2, 2), (3, 2), (4, 1), (5, 3)])
@pytest.mark.parametrize('shuffle', [False, True])
def test_scale_halves(groups, half, shuffle):
    x = torch.randn(2, 2 * groups * half, 3, 4, dtype=torch.float64)
    first = torch.randn(2 * groups, half, 1, 1, dtype=torch.float64)
    second = torch.randn(2 * groups, half, 3, 4, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, first, second)]
    y = ops.scale_halves(*inputs, shuffle)
    parts = x.unflatten(1, (groups, 2, half))
    factors = [t.unflatten(0, (2, groups)) for t in (first, second)]
    expected = torch.stack([parts[:, :, i] * factors[i] for i in range(2)], 2).flatten(1, 3)
    expected = ops.channel_shuffle(expected, 2) if shuffle else expected
    assert torch.equal(y, expected)
    weight = torch.randn_like(y)
    wanted = torch.autograd.grad(expected, inputs, weight)
    for found, grad in zip(torch.autograd.grad(y, inputs, weight), wanted):
        torch.testing.assert_close(found, grad, rtol=0, atol=1e-13)
