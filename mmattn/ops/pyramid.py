"""Pyramid pooling: averages over coarse grids, the keys of asymmetric non-local attention.

Source: Asymmetric Non-local Neural Networks for Semantic Segmentation, ICCV 2019,
    arXiv 1908.07678, section 3.2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def pyramid_pool(x: Tensor, scales: Sequence[int]) -> Tensor:
    """Averages over grids of n x n bins for each n in scales, row by row, one grid after another.

    The bins are those of `adaptive_avg_pool2d`: where n does not divide the size they overlap, and
    where n is larger they repeat pixels. Written as two products with averaging matrices, so it
    exports with dynamic H and W.

    Args:
        x: (N, C, H, W).
        scales: the n of each grid.

    Returns:
        (N, C, S), S = sum of n squared.
    """
    by_column = _averages(x.shape[3], scales, x)  # (sum of n, W)
    strips = x @ by_column.mT  # (N, C, H, sum of n)
    grids = []
    for n, strip in zip(scales, strips.split(list(scales), dim=3), strict=True):
        grids.append((_averages(x.shape[2], (n,), x) @ strip).flatten(2))  # (N, C, n * n)
    return torch.cat(grids, dim=2)


def _averages(size: int, scales: Sequence[int], like: Tensor) -> Tensor:
    """The matrix that averages `size` values into n bins; those of all n, one below another."""
    index = torch.arange(size, device=like.device)
    rows = []
    for n in scales:
        bins = torch.arange(n, device=like.device)[:, None]
        first, last = bins * size // n, ((bins + 1) * size + n - 1) // n  # as adaptive pooling
        inside = (index >= first) & (index < last)  # (n, size)
        rows.append(inside.to(like.dtype) / (last - first).to(like.dtype))
    return torch.cat(rows)
