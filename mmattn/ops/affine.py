"""Sampling a map at affinely transformed positions.

Source: Spatial Transformer Networks, NIPS 2015, arXiv 1506.02025, eq. 1 and 5.
Differs from `affine_grid` + `grid_sample` in: positions are found in pixels, as where a pixel is
plus how far it moves, which is more exact; and an image whose transform is the identity is returned
as it is, to the last bit, while its gradients are those of the sampling.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import disable_autocast, upcast


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
        theta: (N, 2, 3); rows give the x and the y that are read. Held in fp32 or wider.
        size: of the result in pixels, height first; that of x if None.
        padding_mode: 'border' repeats the outermost pixels, 'zeros' continues with 0.
        align_corners: whether -1 and 1 are the centres of the outermost pixels (True) or their
            outer edges (False).

    Returns:
        (N, C, *size) in the dtype of x.

    Raises:
        ValueError: another padding mode; a theta that is not (N, 2, 3).
    """
    if padding_mode not in ('border', 'zeros'):
        raise ValueError(f"affine_sample: {padding_mode=}, allowed 'border', 'zeros'")
    if theta.shape != (x.shape[0], 2, 3):
        raise ValueError(f'affine_sample: theta {tuple(theta.shape)}, not ({x.shape[0]}, 2, 3)')
    with disable_autocast(x):
        wide = upcast(x)
        moves = theta.to(torch.promote_types(theta.dtype, wide.dtype)) - torch.eye(
            2, 3, dtype=wide.dtype, device=x.device
        )
        positions = _positions(moves, x.shape[2:], size or x.shape[2:], align_corners)
        grid = [(2 * at + 1) / n - 1 for at, n in zip(positions, (x.shape[3], x.shape[2]))]
        grid = torch.stack(grid, -1).to(wide.dtype)  # (N, H', W', 2)
        y = F.grid_sample(wide, grid, padding_mode=padding_mode, align_corners=False).to(x.dtype)
        if size is not None and tuple(size) != tuple(x.shape[2:]):
            return y
        still = (moves == 0).flatten(1).all(1)  # (N)
        # to ask costs less than the pass it saves; not on a GPU, which would have to wait, nor of
        # a tensor without values
        asked = type(still) is Tensor and still.is_cpu
        if asked and not torch.compiler.is_compiling() and not still.any():
            return y
        return _Still.apply(y, x, still)


class _Still(torch.autograd.Function):
    """x for the images that are still, else y; the gradient is that of y for all."""

    @staticmethod
    def forward(y: Tensor, x: Tensor, still: Tensor) -> Tensor:
        return torch.where(still[:, None, None, None], x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


def _positions(
    moves: Tensor, source: tuple[int, int], target: tuple[int, int], align_corners: bool
) -> tuple[Tensor, Tensor]:
    """Source column and row of every target pixel, in pixels: two (N, H', W')."""
    (y, start_row), (x, start_column) = (
        _axis(n, m, align_corners, moves) for n, m in zip(source, target, strict=True)
    )
    y, start_row = y[:, None], start_row[:, None]  # (H', 1) beside (W')
    found = []
    for k, start, pixels in (0, start_column, source[1]), (1, start_row, source[0]):
        a, b, c = (moves[:, k, i, None, None] for i in range(3))
        half = (pixels - 1 if align_corners else pixels) / 2  # pixels for a step of 1
        found.append(start + (a * x + b * y + c) * half)
    return found[0], found[1]


def _axis(source: int, target: int, align_corners: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """Target coordinates in [-1, 1], and the source pixels that they are without a transform."""
    at = torch.arange(target, device=like.device).to(like.dtype)
    if not align_corners:
        return (2 * at + 1) / target - 1, (2 * at + 1) * source / (2 * target) - 0.5
    if target == 1:  # one pixel lies in the middle, as in affine_grid
        return at, at + (source - 1) / 2
    return 2 * at / (target - 1) - 1, at * (source - 1) / (target - 1)
