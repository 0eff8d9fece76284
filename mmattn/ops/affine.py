"""Sampling a map at affinely transformed positions.

Source: Spatial Transformer Networks, NIPS 2015, arXiv 1506.02025, eq. 1 and 5.
Differs from `affine_grid` + `grid_sample` in: sampling positions are computed in pixels, as the
position of a pixel plus its displacement, which is more accurate; an image whose transform is the
identity is returned bit by bit, while its gradients are those of the sampling.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmattn.torch_compat import is_compiling

from .layout import channels_last, is_channels_last, match_memory_format
from .precision import disable_autocast, upcast

_MIN_CHANNELS = 128  # from which on sums of rows are faster than `grid_sample`


def affine_sample(
    x: Tensor,
    theta: Tensor,
    size: tuple[int, int] | None = None,
    padding_mode: str = 'border',
    align_corners: bool = False,
) -> Tensor:
    """y[i, j] = x at theta (x_t, y_t, 1), bilinear; (x_t, y_t) in [-1, 1] are those of pixel i, j.

    Args:
        x: (N, C, H, W).
        theta: (N, 2, 3); its rows give the x and the y to sample at. Used in fp32 or wider.
        size: height and width of the result in pixels; those of x if None.
        padding_mode: 'border' repeats the outermost pixels, 'zeros' continues with 0.
        align_corners: whether -1 and 1 are the centres of the outermost pixels (True) or their
            outer edges (False).

    Returns:
        (N, C, *size) in the dtype of x; on a CPU with many channels in its memory format, too.

    Raises:
        ValueError: another padding mode; a theta that is not (N, 2, 3).
    """
    if padding_mode not in ('border', 'zeros'):
        raise ValueError(f"affine_sample: {padding_mode=}, allowed 'border', 'zeros'")
    if theta.shape != (x.shape[0], 2, 3):
        raise ValueError(f'affine_sample: theta {tuple(theta.shape)}, not ({x.shape[0]}, 2, 3)')
    with disable_autocast(x):
        wide = upcast(x)
        delta = theta.to(torch.promote_types(theta.dtype, wide.dtype)) - torch.eye(
            2, 3, dtype=wide.dtype, device=x.device
        )
        positions = _positions(delta, x.shape[2:], size, align_corners)
        many = x.shape[1] >= _MIN_CHANNELS and x.device.type == 'cpu'
        if many and not is_compiling():
            y = _SampleRows.apply(wide, *positions, padding_mode).to(x.dtype)
        else:
            y = _sample(wide, *positions, padding_mode).to(x.dtype)
        if size is not None and tuple(size) != tuple(x.shape[2:]):
            return y
        is_identity = (delta == 0).flatten(1).all(1)  # (N)
        # CPU only: the check is cheaper than the pass it saves; on a GPU it would synchronise, and
        # fake tensors have no values
        can_check = type(is_identity) is Tensor and is_identity.is_cpu
        if can_check and not is_compiling() and not is_identity.any():
            return y
        if torch.jit.is_tracing():
            same = is_identity[:, None, None, None]
            return torch.where(same, x.detach() + (y - y.detach()), y)
        return _KeepIdentity.apply(y, x, is_identity)


def _sample(x: Tensor, column: Tensor, row: Tensor, padding_mode: str) -> Tensor:
    """x (N, C, H, W) at positions in pixels, (N, H', W') twice."""
    grid = [(2 * p + 1) / n - 1 for p, n in zip((column, row), (x.shape[3], x.shape[2]))]
    grid = torch.stack(grid, -1).to(x.dtype)  # (N, H', W', 2)
    return F.grid_sample(x, grid, padding_mode=padding_mode, align_corners=False)


class _KeepIdentity(torch.autograd.Function):
    """x for the images whose transform is the identity, else y; the gradient is that of y."""

    @staticmethod
    def forward(y: Tensor, x: Tensor, is_identity: Tensor) -> Tensor:
        return torch.where(is_identity[:, None, None, None], x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


class _SampleRows(torch.autograd.Function):
    """Bilinear sampling: each result is a weighted sum of four rows of the map in channels_last.

    An embedding bag sums rows several times faster than `grid_sample` and its backward pass do;
    the latter also if maps are copied into channels_last for it and back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, column: Tensor, row: Tensor, padding_mode: str) -> Tensor:
        ctx.save_for_backward(x, column, row)
        ctx.padding_mode = padding_mode
        if not is_channels_last(x):
            return _sample(x, column, row, padding_mode)
        index, weight, _ = _neighbours(x, column, row, padding_mode)
        return _unflatten(_sum_rows(_rows(x), index, weight), column)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, column, row = ctx.saved_tensors
        index, weight, slopes = _neighbours(
            x, column, row, ctx.padding_mode, any(ctx.needs_input_grad[1:])
        )
        grad = _rows(grad)
        x_grad, grads = None, (None, None)
        if ctx.needs_input_grad[0]:
            # bags of the results that read a row; 32 bits sort faster
            places, order = index.flatten().int().sort()
            rows = torch.arange(x[:, 0].numel(), dtype=places.dtype, device=x.device)
            starts = torch.searchsorted(places, rows)
            x_grad = _sum_rows(grad, order // 4, weight.flatten()[order], starts)
            x_grad = match_memory_format(_unflatten(x_grad, x[:, 0]), x)
        if any(ctx.needs_input_grad[1:]):
            pixels = torch.arange(len(grad), device=x.device)
            weight_grad = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                grad, _rows(x), index.flatten(), 4 * pixels, pixels.repeat_interleave(4), 0
            )
            weight_grad = weight_grad.view(-1, 4)
            grads = [(weight_grad * slope).sum(1).view(column.shape) for slope in slopes]
        return x_grad, *grads, None


def _neighbours(
    x: Tensor, column: Tensor, row: Tensor, padding_mode: str, with_slopes: bool = False
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The four pixels around each position.

    Args:
        x: (N, C, H, W).
        column, row: positions in pixels, (N, H', W').
        padding_mode: see `affine_sample`.
        with_slopes: whether derivatives are computed.

    Returns:
        their rows in x, their weights, and the derivatives of these by column and by row, each
        (N H' W', 4).
    """
    columns, by_column, column_slopes = _two(column, x.shape[3], padding_mode, with_slopes)
    rows, by_row, row_slopes = _two(row, x.shape[2], padding_mode, with_slopes)
    images = torch.arange(len(x), device=x.device).view(-1, 1, 1) * x.shape[2]
    lines = [(images + t) * x.shape[3] for t in rows]
    index = torch.stack([line + t for line in lines for t in columns], -1).view(-1, 4)

    def combine(rows: list[Tensor], columns: list[Tensor]) -> Tensor:
        products = [s * t for s in rows for t in columns]
        return torch.stack(products, -1).view(-1, 4).to(x.dtype)

    slopes = []
    if with_slopes:
        slopes = [combine(by_row, column_slopes), combine(row_slopes, by_column)]
    return index, combine(by_row, by_column), slopes


def _two(
    position: Tensor, size: int, padding_mode: str, with_slopes: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of the two pixels of an axis around each position: indices, weights, their derivatives."""
    low, high = (0, size - 1) if padding_mode == 'border' else (-1, size)
    inside = (position > low) & (position < high) if with_slopes else None
    position = position.clamp(low, high)
    first = position.floor()
    fraction = position - first
    weights = [1 - fraction, fraction]
    slopes = [-inside.to(position.dtype), inside.to(position.dtype)] if with_slopes else []
    first = first.nan_to_num().long()  # the fraction remains NaN
    places = [first, first + 1]
    if padding_mode == 'zeros':
        valid = [(place >= 0) & (place < size) for place in places]
        weights, slopes = ([t * v for t, v in zip(ts, valid)] for ts in (weights, slopes))
    return [place.clamp_(0, size - 1) for place in places], weights, slopes


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N H W, C), a view if it is in channels_last."""
    return channels_last(x).permute(0, 2, 3, 1).flatten(0, 2)


def _unflatten(rows: Tensor, like: Tensor) -> Tensor:
    """(N H W, C) -> (N, C, H, W) in channels_last, with N, H, W those of `like`."""
    return rows.unflatten(0, like.shape).permute(0, 3, 1, 2)


def _sum_rows(rows: Tensor, index: Tensor, weight: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Weighted sums of rows (R, C): (M, 4) -> (M, C); or of bags that begin at offsets (M)."""
    return F.embedding_bag(index, rows, offsets, mode='sum', per_sample_weights=weight)


def _positions(
    delta: Tensor, source: tuple[int, int], target: tuple[int, int] | None, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """Source column and row of every target pixel, in pixels: two (N, H', W').

    Args:
        delta: theta without the identity, (N, 2, 3).
        source, target: height and width of map and result; None means those of the map.
        align_corners: see `affine_sample`.
    """
    sizes = (None, None) if target is None else target
    # not by generators, whose closures torch.compile of 2.4 cannot trace
    y, row = _axis(source[0], sizes[0], align_corners, delta)
    x, column = _axis(source[1], sizes[1], align_corners, delta)
    y, row = y[:, None], row[:, None]  # (H', 1), to broadcast with (W')
    less = 1 if align_corners else 0
    height, width = (source[0] - less) / 2, (source[1] - less) / 2  # per unit of [-1, 1]
    a, b, c, d, e, f = delta.flatten(1)[..., None, None].unbind(1)  # (N, 1, 1) each
    # one addition of maps for each, the others are of strips
    return (column + a * (x * width)) + (b * y + c) * width, d * (x * height) + (
        row + (e * y + f) * height
    )


def _axis(
    source: int, target: int | None, align_corners: bool, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Coordinates of target pixels in [-1, 1], and in source pixels under the identity."""
    index = torch.arange(source if target is None else target, device=like.device).to(like.dtype)
    size = source if target is None else target
    if not align_corners:
        place = (2 * index + 1) * source / (2 * size) - 0.5 if target is not None else index
        return (2 * index + 1) / size - 1, place
    if size == 1:  # one pixel lies in the middle, as in affine_grid
        return index, index + (source - 1) / 2
    place = index * (source - 1) / (size - 1) if target is not None else index
    return 2 * index / (size - 1) - 1, place
