"""Bilinear resizing as two products with interpolation matrices."""

import torch
from torch import Tensor

from .precision import upcast


def resize_bilinear(x: Tensor, height: int, width: int, align_corners: bool = True) -> Tensor:
    """`interpolate` with mode 'bilinear', from and to any size.

    By matrix products rather than torch's kernel: exporters with dynamic sizes fix the size of a
    one-pixel map in the kernel, and torch 2.13 compiles its backward pass on the CPU to a wrong
    result where it is fused with the next operation.

    Args:
        x: (N, C, H, W).
        height, width: size of the result in pixels.
        align_corners: whether the centres of the corner pixels stay where they are, or else the
            corners of the map.

    Returns:
        (N, C, height, width).
    """
    rows = _weights(x.shape[2], height, x, align_corners)
    columns = _weights(x.shape[3], width, x, align_corners)
    return (x.mT @ rows.mT).mT @ columns.mT  # rows first: the copied tensor is smaller


def _weights(source: int, target: int, like: Tensor, align_corners: bool) -> Tensor:
    """(target, source), each row with the two weights of its position; they sum to 1."""
    if align_corners:
        step = torch.arange(target, device=like.device) * (source - 1)
        parts = torch.arange(target, device=like.device)[-1:].clamp(min=1)  # target - 1, but for 1
    else:
        step = (2 * torch.arange(target, device=like.device) + 1) * source - target
        parts = torch.arange(target, device=like.device)[-1:] * 2 + 2
        step = step.clamp(min=0).minimum(parts * (source - 1))  # beyond the outermost centres
    # in integers, so position and distance carry no rounding error
    left, right = step // parts, (step % parts).to(upcast(like[:0]).dtype) / parts
    near = torch.arange(source, device=like.device)
    weights = (near == left[:, None]) * (1 - right[:, None])
    weights = weights + (near == left[:, None] + 1) * right[:, None]
    return weights.to(like.dtype)
