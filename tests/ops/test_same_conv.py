import pytest
import torch
from torch.nn import functional as F

from mmattn.ops import same_conv
from tests.blocks.slow import draw


@pytest.mark.parametrize('kernel_size', [1, 3, 7])
@pytest.mark.parametrize('channels', [(2, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize('size', [(5, 4), (1, 6), (1, 1)])
def test_equals_conv2d(size, channels, kernel_size):
    x = draw(2, channels[0], *size).requires_grad_()
    weight = draw(channels[1], channels[0], kernel_size, kernel_size).requires_grad_()
    y, wanted = same_conv(x, weight), F.conv2d(x, weight, padding=kernel_size // 2)
    cotangent = torch.randn_like(y)
    grads = [torch.autograd.grad(t, (x, weight), cotangent) for t in (y, wanted)]
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_only_what_is_asked_for():
    x, weight = draw(1, 2, 4, 5), draw(1, 2, 3, 3).requires_grad_()
    same_conv(x, weight).sum().backward()
    assert weight.grad is not None and x.grad is None
    x, weight = x.requires_grad_(), weight.detach()
    same_conv(x, weight).sum().backward()
    assert x.grad is not None
