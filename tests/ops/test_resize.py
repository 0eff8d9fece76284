import pytest
import torch
from torch.nn import functional as F

from mmattn.ops import resize_bilinear

SIZES = [
    ((1, 1), (5, 7)),
    ((5, 7), (1, 1)),
    ((3, 4), (5, 7)),
    ((7, 5), (3, 9)),
    ((4, 4), (4, 4)),
    ((14, 28), (28, 56)),
]


@pytest.mark.parametrize('form', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize('source, target', SIZES)
def test_interpolate(source, target, align_corners, form):
    x = torch.randn(2, 3, *source, dtype=torch.float64)
    x = x.contiguous(memory_format=form).requires_grad_()
    y = x.detach().clone().requires_grad_()
    found = resize_bilinear(x, *target, align_corners)
    wanted = F.interpolate(y, size=target, mode='bilinear', align_corners=align_corners)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert found.is_contiguous(memory_format=form) or x.is_contiguous()
    assert found.is_contiguous() or not x.is_contiguous()
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-12)


def test_the_size_it_has_is_left_as_it_is():
    x = torch.randn(1, 2, 37, 53)
    assert torch.equal(resize_bilinear(x, 37, 53), x)
