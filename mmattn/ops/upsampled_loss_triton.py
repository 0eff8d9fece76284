"""Losses of upsampled logits and their gradient on CUDA, in Triton.

The width is upsampled by a product with its weights; the kernels interpolate rows as they read
them. So a map of classes has the height of the logits, and what has the size of the labels are
numbers per pixel. Backward a program owns a row of the logits and sums over the rows of the labels
that it takes part in: there are no atomics, and results are deterministic.

Triton is optional: without it this module imports, and `fused_available` returns False. With it the
import takes a second, so import this module where it is needed, not at the top.
"""

from __future__ import annotations  # the signatures of the kernels must not need Triton

import torch
from torch import Tensor

from .triton_common import jit, runs_kernels, tl, triton

_TILE = 32  # classes at a time
_PIXELS = 64  # of a row, of one program
_WARPS = 4

_jit = jit('source_height', 'height', 'width')


def fused_available(logits: Tensor) -> bool:
    """Whether `pixel_losses` takes these: fp32, a device for the kernels."""
    return logits.dtype == torch.float32 and logits.numel() > 0 and runs_kernels(logits.device)


def pixel_losses(
    wide: Tensor, index: Tensor, rows: Tensor, shares: Tensor, sigmoid: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare pixels with their labels.

    Args:
        wide: (N, C, h, W) logits in fp32, contiguous.
        index: (N, H, W) channel of the label in int32, contiguous; -1 where it has none.
        rows: (H) the row of `wide` above each row of the labels, in int32.
        shares: (H) the weight of the row below that one, in fp32.
        sigmoid: binary cross-entropy of each channel, else cross-entropy of all.

    Returns:
        (N, H, W) each: losses; logarithms of the sum of exponentials, or the largest logit with
        `sigmoid`; whether the channel of the label has the largest logit.
    """
    losses = torch.empty(index.shape, dtype=torch.float32, device=wide.device)
    normal, hits = torch.empty_like(losses), torch.empty_like(index, dtype=torch.bool)
    count, channels, source_height, width = wide.shape
    height = index.shape[1]
    grid = (count * height, triton.cdiv(width, _PIXELS))
    with torch.cuda.device_of(wide):  # Triton launches on the current device
        _compare[grid](
            wide, index, rows, shares, losses, normal, hits.view(torch.int8),
            source_height, height, width, **_constants(channels, sigmoid), num_warps=_WARPS,
        )  # fmt: skip
    return losses, normal, hits


def logits_grad(
    wide: Tensor,
    index: Tensor,
    normal: Tensor,
    factor: Tensor,
    rows: Tensor,
    shares: Tensor,
    sigmoid: bool,
) -> Tensor:
    """Gradient of the sum of losses times factors with respect to `wide`.

    Args:
        factor: (N, H, W) in fp32, contiguous.
        wide, index, normal, rows, shares, sigmoid: as in `pixel_losses`.
    """
    grad = torch.empty_like(wide)
    count, channels, source_height, width = wide.shape
    sources = torch.arange(source_height, device=wide.device, dtype=rows.dtype)
    # rows of the labels between the source row and the ones above and below it
    starts = torch.searchsorted(rows, sources - 1, out_int32=True)
    ends = torch.searchsorted(rows, sources, right=True, out_int32=True)
    constants = _constants(channels, sigmoid)
    tiles = triton.cdiv(channels, constants['TILE'])
    grid = (count * source_height, triton.cdiv(width, _PIXELS), tiles)
    with torch.cuda.device_of(wide):
        _differentiate[grid](
            wide, index, normal, factor, rows, shares, starts, ends, grad,
            source_height, index.shape[1], width, **constants, num_warps=_WARPS,
        )  # fmt: skip
    return grad


def _constants(channels: int, sigmoid: bool) -> dict[str, int | bool]:
    tile = min(triton.next_power_of_2(channels), _TILE)
    return dict(C=channels, TILE=tile, PIXELS=_PIXELS, SIGMOID=sigmoid)


@_jit
def _interpolate(wide, channels, x, inside, above, below, share, source_height, width):
    """(TILE, PIXELS) logits between two rows of an image.

    Args:
        wide: pointer to the first channel of the image.
        channels: (TILE, 1) numbers of channels.
        x: (1, PIXELS) columns.
        inside: (TILE, PIXELS), whether to read.
        above, below: the rows.
        share: the weight of the row below.
    """
    starts = channels.to(tl.int64) * source_height
    upper = tl.load(wide + (starts + above) * width + x, mask=inside, other=0.0)
    lower = tl.load(wide + (starts + below) * width + x, mask=inside, other=0.0)
    return upper * (1.0 - share) + lower * share


@_jit
def _softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@_jit
def _compare(
    wide, index, rows, shares, losses, normal, hits, source_height, height, width,
    C: tl.constexpr, TILE: tl.constexpr, PIXELS: tl.constexpr, SIGMOID: tl.constexpr
):  # fmt: skip
    """Losses of PIXELS of a row of the labels; running values as in an online softmax."""
    row = tl.program_id(0)
    image = row // height
    x = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    pixels = row.to(tl.int64) * width + x
    above = tl.load(rows + row % height)
    share = tl.load(shares + row % height)
    below = tl.minimum(above + 1, source_height - 1)
    label = tl.load(index + pixels, mask=x < width, other=-1)
    first = wide + image.to(tl.int64) * C * source_height * width
    peak = tl.full((PIXELS,), float('-inf'), tl.float32)
    total = tl.zeros((PIXELS,), tl.float32)
    picked = tl.zeros((PIXELS,), tl.float32)
    for start in range(0, C, TILE):
        c = (start + tl.arange(0, TILE))[:, None]
        inside = (c < C) & (x < width)[None, :]
        values = _interpolate(
            first, c, x[None, :], inside, above, below, share, source_height, width
        )
        picked += tl.sum(tl.where(c == label[None, :], values, 0.0), 0)
        higher = tl.maximum(peak, tl.max(tl.where(c < C, values, float('-inf')), 0))
        if SIGMOID:
            total += tl.sum(tl.where(c < C, _softplus(values), 0.0), 0)
        else:
            weights = tl.where(c < C, tl.exp(values - higher[None, :]), 0.0)
            total = total * tl.exp(peak - higher) + tl.sum(weights, 0)
        peak = higher
    hit = (picked == peak) & (label >= 0)
    if not SIGMOID:
        total = peak + tl.log(total)
        peak = total
    tl.store(losses + pixels, total - picked, mask=x < width)
    tl.store(normal + pixels, peak, mask=x < width)
    tl.store(hits + pixels, hit.to(tl.int8), mask=x < width)


@_jit
def _differentiate(
    wide, index, normal, factor, rows, shares, starts, ends, grad, source_height, height, width,
    C: tl.constexpr, TILE: tl.constexpr, PIXELS: tl.constexpr, SIGMOID: tl.constexpr
):  # fmt: skip
    """Gradient of TILE classes and PIXELS of a row of the logits."""
    image = tl.program_id(0) // source_height
    own = tl.program_id(0) % source_height
    x = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    c = (tl.program_id(2) * TILE + tl.arange(0, TILE))[:, None]
    inside = (c < C) & (x < width)[None, :]
    first = wide + image.to(tl.int64) * C * source_height * width
    result = tl.zeros((TILE, PIXELS), tl.float32)
    for row in range(tl.load(starts + own), tl.load(ends + own)):
        above = tl.load(rows + row)
        share = tl.load(shares + row)
        below = tl.minimum(above + 1, source_height - 1)
        values = _interpolate(
            first, c, x[None, :], inside, above, below, share, source_height, width
        )
        pixels = (image.to(tl.int64) * height + row) * width + x
        label = tl.load(index + pixels, mask=x < width, other=-1)
        weight = tl.load(factor + pixels, mask=x < width, other=0.0)
        if SIGMOID:
            slope = tl.sigmoid(values)
        else:
            slope = tl.exp(values - tl.load(normal + pixels, mask=x < width, other=0.0)[None, :])
        slope -= tl.where(c == label[None, :], 1.0, 0.0)
        own_share = tl.where(above == own, 1.0 - share, 0.0) + tl.where(below == own, share, 0.0)
        result += slope * (weight * own_share)[None, :]
    targets = grad + image.to(tl.int64) * C * source_height * width
    starts_of_rows = (c.to(tl.int64) * source_height + own) * width
    tl.store(targets + starts_of_rows + x[None, :], result, mask=inside)
