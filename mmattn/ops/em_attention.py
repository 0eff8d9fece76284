"""Cross-spatial learning of EMA attention, which keeps no map but its input.

Source: Efficient Multi-Scale Attention Module with Cross-Spatial Learning, ICASSP 2023,
arXiv 2305.13563.

Here maps are (N, C, H, W), their G groups of c = C / G channels; B = N G.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmattn.torch_compat import is_compiling

from .layout import match_memory_format
from .precision import disable_autocast, upcast

_PART = 1 << 19  # values at a time on a CPU; their intermediates fit into the cache
_PART_GPU = 1 << 26


def strip_and_window_means(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Means over rows and columns, and over the windows that the taps of a 3x3 kernel see.

    The latter are the means of the nine maps that a 3x3 convolution with padding 1 weighs: of x
    shifted by one pixel or none in both directions, and filled with zeros.

    Args:
        x: (N, C, H, W).
        groups: G.

    Returns:
        (B, c, H + W), the means of the rows, then of the columns, and (B, c, 3, 3), in fp32 or
        wider.
    """
    if is_compiling():
        return _strip_and_window_means(x, groups)
    return _StripAndWindowMeans.apply(x, groups)


def cross_spatial_logits(
    x: Tensor, groups: int, strips: Tensor, scale: Tensor, kernel: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """sum_c scale_c (t_c - mean(t_c)) / sqrt(var(t_c) + eps) + kernel * x + bias.

    Where t = x sigmoid(strips of the rows) sigmoid(strips of the columns), and the kernel makes one
    channel of each group.

    Args:
        x: (N, C, H, W).
        groups: G.
        strips: (B, c, H + W).
        scale: (B, c).
        kernel: (c, 3, 3), the same for each group.
        bias: (B).
        eps: added to the variance.

    Returns:
        (N, G, H, W) in fp32 or wider.
    """
    with disable_autocast(x):
        parts = upcast(_by_group(x, groups))
        rows, columns = _gates(strips, x)
        t = parts * rows * columns
        t = t - t.mean((2, 3), keepdim=True)
        scale = scale * (t.square().mean((2, 3)) + eps).rsqrt()
        z = (t * scale[:, :, None, None]).sum(1) + F.conv2d(parts, kernel[None], padding=1)[:, 0]
        return (z + bias[:, None, None]).unflatten(0, (x.shape[0], groups))


def cross_spatial(
    x: Tensor,
    groups: int,
    strips: Tensor,
    scale: Tensor,
    kernel: Tensor,
    bias: Tensor,
    eps: float,
    factor: float = 1,
) -> Tensor:
    """factor x sigmoid(z), with z as `cross_spatial_logits` gives it for these arguments.

    For backward it keeps no map but x.

    Returns:
        (N, C, H, W) in the dtype of x.
    """
    if not is_compiling():
        return _CrossSpatial.apply(x, groups, strips, scale, kernel, bias, eps, factor)
    z = cross_spatial_logits(x, groups, strips, scale, kernel, bias, eps)
    gate = factor * z.sigmoid()  # (N, G, H, W)
    return (upcast(x).unflatten(1, (groups, -1)) * gate[:, :, None]).flatten(1, 2).to(x.dtype)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(N, C, H, W) -> (B, c, H, W)."""
    return x.unflatten(1, (groups, x.shape[1] // groups)).flatten(0, 1)


def _gates(strips: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, c, H + W) -> sigmoids (B, c, H, 1) and (B, c, 1, W)."""
    rows, columns = strips.sigmoid().split([x.shape[2], x.shape[3]], 2)
    return rows[..., None], columns[:, :, None]


def _strip_and_window_means(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    height, width = x.shape[2:]
    strips = torch.cat([_mean(x, 3), _mean(x, 2)], 2)
    rows = strips[:, :, :height, None]
    first, last = upcast(x[..., :1]) / width, upcast(x[..., -1:]) / width
    rows = torch.cat([rows - last, rows, rows - first], 3)  # (N, C, H, 3)
    whole = rows.sum(2, keepdim=True)
    windows = torch.cat([whole - rows[:, :, -1:], whole, whole - rows[:, :, :1]], 2) / height
    return _by_group(strips, groups), _by_group(windows, groups)


def _mean(x: Tensor, dim: int) -> Tensor:
    """Mean over rows or columns in fp32 or wider; many times faster if in the format of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if is_compiling() or _memory_format(x) == torch.contiguous_format:
        return x.mean(dim, dtype=wide)
    return x.permute(0, 2, 3, 1).mean(dim - 1, dtype=wide).mT


class _StripAndWindowMeans(torch.autograd.Function):
    """`strip_and_window_means`, which keeps nothing, and whose gradient is written once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        ctx.shape, ctx.dtype, ctx.groups = x.shape, x.dtype, groups
        ctx.format = _memory_format(x)
        return _strip_and_window_means(x, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, strips: Tensor, windows: Tensor) -> tuple[Tensor, None]:
        count, channels, height, width = ctx.shape
        strips, windows = (t.reshape(count, channels, *t.shape[2:]) for t in (strips, windows))
        windows = windows / height
        rows = windows.sum(2, keepdim=True).repeat(1, 1, height, 1)  # (N, C, H, 3)
        rows[:, :, -1] -= windows[:, :, 0]
        rows[:, :, 0] -= windows[:, :, 2]
        rows /= width
        by_row = strips[:, :, :height] / width + rows.sum(3)
        by_column = strips[:, :, height:] / height
        grad = torch.add(
            by_row[..., None].contiguous(memory_format=ctx.format),
            by_column[:, :, None].contiguous(memory_format=ctx.format),
        )
        grad[..., -1] -= rows[..., 0]
        grad[..., 0] -= rows[..., 2]
        return grad.to(ctx.dtype, memory_format=ctx.format), None


class _CrossSpatial(torch.autograd.Function):
    """`cross_spatial`, some groups at a time; backward computes z again.

    With t centred, d the root of its variance + eps, and dz the gradient of z:
    dt = scale / d (dz - mean(dz) - t sum(t dz) / (H W d^2)).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        groups: int,
        strips: Tensor,
        scale: Tensor,
        kernel: Tensor,
        bias: Tensor,
        eps: float,
        factor: float,
    ) -> Tensor:
        gates = strips.new_empty(len(x), groups, *x.shape[2:])
        parts, gate = _by_group(match_memory_format(x, gates), groups), gates.flatten(0, 1)
        mean, deviation = (strips.new_empty(*scale.shape, 1, 1) for _ in range(2))
        with disable_autocast(x):
            for i in _slices(parts):
                part = upcast(parts[i])
                t = _weighted(part, strips[i])
                torch.mean(t, (2, 3), keepdim=True, out=mean[i])
                t -= mean[i]
                norm = torch.linalg.vector_norm(t.flatten(2), dim=2)[..., None, None]
                torch.sqrt(norm.square() / t[0, 0].numel() + eps, out=deviation[i])
                z = _logits(part, t, scale[i] / deviation[i, :, 0, 0], kernel, bias[i])
                torch.mul(z.sigmoid_(), factor, out=gate[i])
            y = torch.empty_like(x)
            by_group = (t.unflatten(1, (groups, -1)) for t in (x, y))  # (N, G, c, H, W)
            torch.mul(next(by_group), gates[:, :, None], out=next(by_group))
        ctx.save_for_backward(x, strips, scale, kernel, bias, mean, deviation)
        ctx.groups, ctx.factor = groups, factor
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, strips, scale, kernel, bias, mean, deviation = ctx.saved_tensors
        x_grad = x.new_empty(x.shape)
        parts, grad, parts_grad = (
            _by_group(match_memory_format(t, x_grad), ctx.groups) for t in (x, grad, x_grad)
        )
        strips_grad, scale_grad, bias_grad = (torch.empty_like(t) for t in (strips, scale, bias))
        kernel_grad = torch.zeros_like(kernel)
        pixels = x.shape[2] * x.shape[3]
        flipped = kernel.flatten(1).flip(1)  # (c, 9): a tap moves a gradient the other way
        with disable_autocast(x):
            for i in _slices(parts):
                part, y_grad = upcast(parts[i]), upcast(grad[i])
                slope = (scale[i] / deviation[i, :, 0, 0])[..., None, None]
                t = _weighted(part, strips[i]).sub_(mean[i])
                gate = _logits(part, t, slope[..., 0, 0], kernel, bias[i]).sigmoid_()
                z_grad = (y_grad * part).sum(1) * ctx.factor
                z_grad = torch.ops.aten.sigmoid_backward(z_grad, gate)[:, None]  # (b, 1, H, W)
                gate = gate.mul_(ctx.factor)[:, None]
                bias_grad[i] = z_grad.sum((1, 2, 3))
                similarity = (t * z_grad).sum((2, 3), keepdim=True)
                scale_grad[i] = (similarity / deviation[i])[..., 0, 0]

                windows = _windows(z_grad[:, 0])
                taps = torch.bmm(part.flatten(2), windows.mT).sum(0)  # (c, 9)
                kernel_grad += taps.flip(1).unflatten(1, (3, 3))
                found = torch.bmm(flipped.expand(len(part), -1, -1), windows).view_as(part)
                found.addcmul_(y_grad, gate)

                t.mul_(-slope * similarity / (deviation[i].square() * pixels))
                t.addcmul_(slope, z_grad - z_grad.mean((2, 3), keepdim=True))
                rows, columns = _gates(strips[i], x)
                t.mul_(rows).mul_(columns)
                torch.add(found, t, out=parts_grad[i])
                t.mul_(part)
                rows_grad = t.sum(3) * (1 - rows[..., 0])
                columns_grad = t.sum(2) * (1 - columns[:, :, 0])
                torch.cat([rows_grad, columns_grad], 2, out=strips_grad[i])
        x_grad = match_memory_format(x_grad, x)
        return x_grad, None, strips_grad, scale_grad, kernel_grad, bias_grad, None, None


def _memory_format(x: Tensor) -> torch.memory_format:
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format


def _slices(parts: Tensor) -> Iterator[slice]:
    """Runs of the first axis of (B, c, H, W) of about `_PART` values."""
    values = max(parts.shape[1], 9) * parts.shape[2] * parts.shape[3]
    step = max((_PART if parts.device.type == 'cpu' else _PART_GPU) // max(values, 1), 1)
    return (slice(start, start + step) for start in range(0, len(parts), step))


def _weighted(part: Tensor, strips: Tensor) -> Tensor:
    """The map times the gates of its rows and columns."""
    rows, columns = _gates(strips, part)
    return (part * rows).mul_(columns)


def _logits(part: Tensor, t: Tensor, slope: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """sum_c slope_c t_c + kernel * part + bias, (b, c, H, W) -> (b, H, W).

    As matrix products, which are several times faster than a convolution to one channel.
    """
    z = torch.bmm(slope[:, None], t.flatten(2)).add_(bias[:, None, None])
    z = z.view(len(t), *t.shape[2:])
    taps = kernel.flatten(1).T.expand(len(part), -1, -1) @ part.flatten(2)  # (b, 9, P)
    taps = taps.view(len(part), 3, 3, *part.shape[2:])
    above, rows, below = taps.unbind(1)  # (b, 3, H, W)
    rows[:, :, 1:] += above[:, :, :-1]
    rows[:, :, :-1] += below[:, :, 1:]
    left, centre, right = rows.unbind(1)
    z += centre
    z[:, :, 1:] += left[:, :, :-1]
    z[:, :, :-1] += right[:, :, 1:]
    return z


def _windows(z: Tensor) -> Tensor:
    """The map shifted to each tap of a 3x3 kernel, zeros outside: (b, H, W) -> (b, 9, P)."""
    padded = F.pad(z, (1, 1, 1, 1))
    views = padded.unfold(1, z.shape[1], 1).unfold(2, z.shape[2], 1)  # (b, 3, 3, H, W)
    return views.reshape(len(z), 9, -1)
