"""Bilinear resizing as two products with interpolation matrices."""

import torch
from torch import Tensor

from mmattn.torch_compat import is_compiling, is_exporting

from .layout import is_channels_last
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
        (N, C, height, width), in the memory format of x.
    """
    rows = interpolation_weights(x.shape[2], height, x, align_corners)
    columns = interpolation_weights(x.shape[3], width, x, align_corners)
    if is_exporting():  # `matmul` and `flatten` would ask whether sizes are multiples of others
        maps = x[:, 0] if x.shape[1] == 1 else x.flatten(0, 1)
        rows, columns = (t.expand(len(maps), -1, -1) for t in (rows, columns.mT))
        y = torch.bmm(torch.bmm(rows, maps), columns)
        return y[:, None] if x.shape[1] == 1 else y.unflatten(0, x.shape[:2])
    if is_channels_last(x) and not is_compiling():
        stored = rows @ x.permute(0, 2, 3, 1).flatten(2)  # (N, height, W C)
        return (columns @ stored.unflatten(2, (x.shape[3], -1))).permute(0, 3, 1, 2)
    return (x.mT @ rows.mT).mT @ columns.mT  # rows first: the copied tensor is smaller


def interpolation_weights(source: int, target: int, like: Tensor, align_corners: bool) -> Tensor:
    """(target, source), each row with the two weights of its position; they sum to 1."""
    near = torch.arange(source, device=like.device)
    position, parts = _positions(source, target, like, align_corners)
    # in integers, parts of a pixel, so that a distance carries no rounding error
    distance = (position[:, None] - near * parts).abs()  # (target, source)
    weights = (parts - distance).clamp(min=0) / parts.to(upcast(like[:0]).dtype)
    return weights.to(like.dtype)


def interpolation_pairs(
    source: int, target: int, like: Tensor, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """(target) each: the pixel before a position, and the weight of the one after it."""
    position, parts = _positions(source, target, like, align_corners)
    return (position // parts).int(), (position % parts / parts).to(like.dtype)


def _positions(
    source: int, target: int, like: Tensor, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """Positions (target) in parts of a pixel of the source, and the number of parts of a pixel."""
    position = torch.arange(target, device=like.device)
    last = position[-1:]  # target - 1; a tensor, so that exporters keep it as a function of sizes
    if align_corners:
        return position * (source - 1), last.clamp(min=1)
    parts = 2 * last + 2
    position = (2 * position + 1) * source - target
    return position.clamp(min=0).minimum(parts * (source - 1)), parts  # beyond outermost centres
