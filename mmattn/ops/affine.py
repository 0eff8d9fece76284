"""Sampling a map at affinely transformed positions.

Source: Spatial Transformer Networks, NIPS 2015, arXiv 1506.02025, eq. 1 and 5.
Differs from `affine_grid` + `grid_sample` in: sampling positions are computed in pixels, as the
position of a pixel plus its displacement, which is more accurate; an image whose transform is the
identity is returned bit by bit, while its gradients are those of the sampling.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmattn.torch_compat import is_compiling

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
        theta: (N, 2, 3); its rows give the x and the y to sample at. Used in fp32 or wider.
        size: height and width of the result in pixels; those of x if None.
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
        delta = theta.to(torch.promote_types(theta.dtype, wide.dtype)) - torch.eye(
            2, 3, dtype=wide.dtype, device=x.device
        )
        positions = _positions(delta, x.shape[2:], size or x.shape[2:], align_corners)
        grid = [(2 * p + 1) / n - 1 for p, n in zip(positions, (x.shape[3], x.shape[2]))]
        grid = torch.stack(grid, -1).to(wide.dtype)  # (N, H', W', 2)
        y = F.grid_sample(wide, grid, padding_mode=padding_mode, align_corners=False).to(x.dtype)
        if size is not None and tuple(size) != tuple(x.shape[2:]):
            return y
        is_identity = (delta == 0).flatten(1).all(1)  # (N)
        # CPU only: the check is cheaper than the pass it saves; on a GPU it would synchronise, and
        # fake tensors have no values
        can_check = type(is_identity) is Tensor and is_identity.is_cpu
        if can_check and not is_compiling() and not is_identity.any():
            return y
        return _KeepIdentity.apply(y, x, is_identity)


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


def _positions(
    delta: Tensor, source: tuple[int, int], target: tuple[int, int], align_corners: bool
) -> tuple[Tensor, Tensor]:
    """Source column and row of every target pixel, in pixels: two (N, H', W')."""
    (y, start_row), (x, start_column) = (
        _axis(n, m, align_corners, delta) for n, m in zip(source, target, strict=True)
    )
    y, start_row = y[:, None], start_row[:, None]  # (H', 1), to broadcast with (W')
    positions = []
    for k, start, pixels in (0, start_column, source[1]), (1, start_row, source[0]):
        a, b, c = (delta[:, k, i, None, None] for i in range(3))
        half = (pixels - 1 if align_corners else pixels) / 2  # pixels per unit of [-1, 1]
        positions.append(start + (a * x + b * y + c) * half)
    return positions[0], positions[1]


def _axis(source: int, target: int, align_corners: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of target pixels in [-1, 1], and in source pixels under the identity."""
    index = torch.arange(target, device=like.device).to(like.dtype)
    if not align_corners:
        return (2 * index + 1) / target - 1, (2 * index + 1) * source / (2 * target) - 0.5
    if target == 1:  # one pixel lies in the middle, as in affine_grid
        return index, index + (source - 1) / 2
    return 2 * index / (target - 1) - 1, index * (source - 1) / (target - 1)
