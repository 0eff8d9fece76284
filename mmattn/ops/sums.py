"""Sums over positions or channels, and factors whose gradients are such sums.

Compiled for a CPU, a convolution to one channel is a product and a sum, which are fused with their
neighbours, and a map in channels_last is summed by rows first: a loop over all of its positions
jumps from page to page.
"""

import torch
from torch import Tensor

from mmattn.torch_compat import is_compiling, is_exporting

from .layout import is_channels_last
from .precision import upcast


def channel_means(x: Tensor, keepdim: bool = False) -> Tensor:
    """Means over positions in the dtype of x, (N, C, H, W) -> (N, C), or (N, C, 1, 1) to keep dims.

    The gradient for x is an expanded vector; that of `x.mean` is written out.
    """
    if sums_by_rows(x):
        means = as_nhwc(x).mean(2).mean(1)
        return means[:, :, None, None] if keepdim else means
    if is_compiling() or upcast(x) is not x:  # a sum may exceed what fp16 holds
        return x.mean((2, 3), keepdim=keepdim)
    return x.sum((2, 3), keepdim=keepdim) / x.shape[2:].numel()


def weighted_sums(x: Tensor, weights: Tensor) -> Tensor:
    """Sums over positions of x times weights: (N, C, H, W), (N, 1, H, W) -> (N, C)."""
    if not _as_loops(x):
        return (x.flatten(2) @ weights.flatten(2).mT).flatten(1)
    product = x * weights
    return as_nhwc(product).sum(2).sum(1) if sums_by_rows(x) else product.sum((2, 3))


def channel_factor(gate: Tensor, x: Tensor) -> Tensor:
    """A gate (N, C) or (N, C, 1, 1) in the form in which it multiplies x (N, C, H, W)."""
    if sums_by_rows(x):
        rows = gate.flatten(1)[:, None, None].expand(-1, x.shape[2], -1, -1)
        return rows.permute(0, 3, 1, 2)
    return gate if gate.dim() == 4 else gate[:, :, None, None]


def position_dots(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution to one channel: (N, C, H, W), (1, C, 1, 1), (1) -> (N, 1, H, W)."""
    if not _as_loops(x):
        return torch.conv2d(x, weight, bias)
    if sums_by_rows(x):
        factor = weight.flatten().expand(len(x), x.shape[2], 1, -1)
        return (as_nhwc(x) * factor).sum(3)[:, None] + bias[:, None, None]
    return (x * weight).sum(1, keepdim=True) + bias[:, None, None]


def as_nhwc(x: Tensor) -> Tensor:
    """A map in channels_last as (N, H, W, C), for results and gradients in the same order."""
    return x.permute(0, 2, 3, 1)


def _as_loops(x: Tensor) -> bool:
    """Whether sums become loops; in half precision those of rows would be rounded."""
    loops = is_compiling() and not is_exporting() and x.device.type == 'cpu'
    return loops and upcast(x) is x


def sums_by_rows(x: Tensor) -> bool:
    """Whether positions are reduced by rows first."""
    return _as_loops(x) and is_channels_last(x)
