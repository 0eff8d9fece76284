import pytest
import torch
from torch.nn import functional as F

from mmattn.ops import (
    cross_spatial,
    cross_spatial_logits,
    em_attention,
    strip_and_window_means,
)

SIZES = [(4, 3), (1, 5), (5, 1), (2, 2), (1, 1)]


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def arguments(n, channels, groups, height, width):
    """x, strips, scale, kernel, bias."""
    count, each = n * groups, channels // groups
    shapes = (each, height + width), (each,), ()
    strips, scale, bias = (draw(count, *shape) for shape in shapes)
    return draw(n, channels, height, width), strips, scale, draw(each, 3, 3), bias


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('compiling', [False, True])
@pytest.mark.parametrize('height, width', SIZES)
def test_strips_and_windows_are_means_of_shifted_maps(
    height, width, compiling, layout, monkeypatch
):
    monkeypatch.setattr(em_attention, 'is_compiling', lambda: compiling)
    x = draw(2, 6, height, width).to(memory_format=layout).requires_grad_()
    found = strip_and_window_means(x, 3)
    parts = x.unflatten(1, (3, 2)).flatten(0, 1)
    padded = F.pad(parts, (1, 1, 1, 1))
    windows = [
        padded[:, :, i : i + height, j : j + width].mean((2, 3)) for i in range(3) for j in range(3)
    ]
    strips = torch.cat([parts.mean(3), parts.mean(2)], 2)
    wanted = strips, torch.stack(windows, 2).unflatten(2, (3, 3))
    torch.testing.assert_close(found, wanted)
    weights = [torch.randn_like(t) for t in wanted]
    (found, wanted) = (torch.autograd.grad(y, x, weights) for y in (found, wanted))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize('groups', [1, 2, 6])
@pytest.mark.parametrize('height, width', SIZES)
def test_logits_are_those_of_a_group_norm_and_a_convolution(height, width, groups):
    x, strips, scale, kernel, bias = arguments(2, 6, groups, height, width)
    parts = x.unflatten(1, (groups, -1)).flatten(0, 1)
    rows, columns = strips.sigmoid().split([height, width], 2)
    normed = F.group_norm(parts * rows[..., None] * columns[:, :, None], parts.shape[1], eps=1e-3)
    wanted = (normed * scale[..., None, None]).sum(1) + bias[:, None, None]
    wanted = wanted + F.conv2d(parts, kernel[None], padding=1)[:, 0]
    found = cross_spatial_logits(x, groups, strips, scale, kernel, bias, 1e-3)
    torch.testing.assert_close(found, wanted.unflatten(0, (2, groups)))


@pytest.mark.parametrize('factor', [1, 2])
@pytest.mark.parametrize('groups', [1, 2, 6])
@pytest.mark.parametrize('height, width', SIZES)
def test_values_and_gradients_are_those_of_the_logits(height, width, groups, factor):
    x, *others = arguments(2, 6, groups, height, width)
    inputs = [t.requires_grad_() for t in (x, *others)]
    gate = factor * cross_spatial_logits(x, groups, *others, 1e-3).sigmoid()
    wanted = x * gate.repeat_interleave(6 // groups, 1)
    found = cross_spatial(x, groups, *others, 1e-3, factor)
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(wanted)
    for a, b in zip(*(torch.autograd.grad(y, inputs, weight) for y in (found, wanted))):
        torch.testing.assert_close(a, b)


def test_only_the_arguments_and_two_numbers_a_channel_are_kept():
    x, *others = arguments(2, 6, 2, 7, 8)
    inputs, kept = [t.requires_grad_() for t in (x, *others)], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cross_spatial(x, 2, *others, 1e-3)
    given = {t.data_ptr() for t in inputs}
    assert [t.numel() for t in kept if t.data_ptr() not in given] == [12, 12]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_half_map_is_gated_in_fp32(dtype):
    x, *others = arguments(2, 6, 2, 7, 8)
    x, others = (1000 * x).to(dtype), [t.float() for t in others]
    x.requires_grad_()
    with torch.autocast('cpu', dtype):
        found = cross_spatial(x, 2, *others, 1e-3)
        found.float().mean().backward()
    wanted = cross_spatial(x.detach().float(), 2, *others, 1e-3)
    assert found.dtype == dtype and x.grad.isfinite().all()
    assert torch.equal(found, wanted.to(dtype))
