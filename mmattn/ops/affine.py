"""Sampling a map at affinely transformed positions, exactly where the transform is the identity.

Source: Spatial Transformer Networks, NIPS 2015, arXiv 1506.02025, eq. 1 and 5.
Differs from `affine_grid` + `grid_sample` in: the positions are held in pixels as an integer
position plus a displacement, so the identity transform returns its input to the last bit.
"""

import torch
from torch import Tensor

from .precision import widen, without_autocast


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
    with without_autocast(x):
        column, row = _positions(widen(theta), x.shape[2:], size or x.shape[2:], align_corners)
        return _bilinear(x, row, column, padding_mode)


def _positions(
    theta: Tensor, source: tuple[int, int], target: tuple[int, int], align_corners: bool
) -> tuple[Tensor, Tensor]:
    """Source column and row of every target pixel, in pixels: two (N, H', W')."""
    moves = theta - torch.eye(2, 3, dtype=theta.dtype, device=theta.device)
    (y, start_row), (x, start_column) = (
        _axis(n, m, align_corners, theta) for n, m in zip(source, target, strict=True)
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


def _bilinear(x: Tensor, row: Tensor, column: Tensor, padding_mode: str) -> Tensor:
    """(N, C, H, W) at (N, H', W') positions in pixels -> (N, C, H', W')."""
    channels, height, width = x.shape[1:]
    if padding_mode == 'border':
        row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
    top, left = row.floor().detach(), column.floor().detach()
    down, right = row - top, column - left
    indices, weights = [], []
    for r, wr in (top, 1 - down), (top + 1, down):
        for c, wc in (left, 1 - right), (left + 1, right):
            inside = (r >= 0) & (r <= height - 1) & (c >= 0) & (c <= width - 1)
            position = r.clamp(0, height - 1) * width + c.clamp(0, width - 1)
            indices.append(position.long().flatten(1))  # (N, P')
            weights.append((wr * wc * inside).flatten(1))
    flat = x.flatten(2)
    out = sum(
        flat.gather(2, i[:, None].expand(-1, channels, -1)) * w[:, None].to(x.dtype)
        for i, w in zip(indices, weights, strict=True)
    )
    return out.unflatten(2, row.shape[1:])
