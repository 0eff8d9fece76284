"""Pooling of maps to one value a channel, similarity of channels, and channel shuffle."""

import math

import torch
from torch import Tensor

from mmattn.torch_compat import is_compiling

from .precision import disable_autocast, upcast
from .sums import as_nhwc, channel_means, sums_by_rows

_MIN_SUM = 1e-24  # of squares; keeps the derivative of the root finite at an all-zero channel


def global_pool(x: Tensor, kind: str) -> Tensor:
    """One value a channel: (N, C, H, W) -> (N, C).

    Args:
        x: the maps.
        kind: 'avg' mean; 'max' maximum; 'lp' root of the sum of squares; 'lse' log of the sum of
            exponentials. The last two are computed and returned in fp32 or wider: the root may
            exceed what fp16 holds.

    Raises:
        ValueError: another kind.
    """
    if kind == 'avg':
        return channel_means(x)
    if kind == 'max':
        return (
            as_nhwc(x).max(2).values.max(1).values
            if sums_by_rows(x)
            else first_max(x.flatten(2), 2)
        )
    if kind == 'lp':
        return upcast(x).square().sum((2, 3)).clamp(min=_MIN_SUM).sqrt()
    if kind == 'lse':
        return upcast(x).flatten(2).logsumexp(-1)
    raise ValueError(f"global_pool: {kind=}, allowed 'avg', 'max', 'lp', 'lse'")


def first_max(x: Tensor, dim: int) -> Tensor:
    """Maximum along an axis; the gradient goes to the first of equal values, as in max-pooling.

    Faster than `x.max(dim).values`: the index is computed in two steps, and only for a gradient.
    """
    if is_compiling():
        return x.max(dim).values
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x.amax(dim)
    order = sorted(range(x.dim()), key=lambda axis: -x.stride(axis))
    if not x.is_contiguous() and x.permute(order).is_contiguous():  # gather's gradient is, too
        found = first_max(x.permute(order), order.index(dim))
        axes = [axis for axis in order if axis != dim]
        return found.permute([axes.index(axis) for axis in sorted(axes)])
    length = x.shape[dim]
    part = max(n for n in range(1, math.isqrt(length) + 1) if length % n == 0)
    with torch.no_grad():
        parts = x.unflatten(dim, (length // part, part))
        part_index = parts.amax(dim + 1).argmax(dim, keepdim=True).unsqueeze(dim)
        size = [-1] * parts.dim()
        size[dim + 1] = part
        best_part = parts.gather(dim, part_index.expand(size)).squeeze(dim)
        index = part_index.squeeze(dim) * part + best_part.argmax(dim, keepdim=True)
    return x.gather(dim, index).squeeze(dim)


def channel_mean(x: Tensor) -> Tensor:
    """Mean over the channels, (N, C, H, W) -> (N, 1, H, W)."""
    is_half = upcast(x) is not x  # 1 / C would not be exact
    # a compiler fuses it with its neighbours, and its backward pass is cheaper
    if is_compiling() or is_half or (x.requires_grad and torch.is_grad_enabled()):
        return x.mean(1, keepdim=True)
    with disable_autocast(x):  # a product with a vector runs at memory speed
        mean = x.new_full((1, x.shape[1]), 1 / x.shape[1]) @ x.flatten(2)
    return mean.unflatten(2, x.shape[2:])


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` equal parts: (N, C, ...) -> (N, C, ...).

    With 2 groups and C = 8 the order becomes 0 4 1 5 2 6 3 7. Shuffling with C / groups afterwards
    restores it. Source: ShuffleNet, CVPR 2018, arXiv 1707.01083, fig. 1.
    """
    parts = x.unflatten(1, (groups, x.shape[1] // groups))
    return parts.transpose(1, 2).flatten(1, 2)
