"""Criss-cross attention: every pixel looks at its own row and its own column.

Source: CCNet: Criss-Cross Attention for Semantic Segmentation, ICCV 2019,
    arXiv 1811.11721, eq. 1-2.
"""

from typing import Any

import torch
from torch import Tensor

from .precision import widen, without_autocast


def criss_cross(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """o[i, j] = sum_p softmax_p(q[i, j] . k[p]) v[p], p the H + W - 1 pixels of row i and column j.

    The pixel itself is counted once. The logits are not scaled. Logits and softmax are computed in
    fp32 or wider whatever the inputs are, so half precision does not overflow; under autocast too.

    Args:
        q: (N, E, H, W) queries.
        k: (N, E, H, W) keys.
        v: (N, C, H, W) values.

    Returns:
        (N, C, H, W) in the dtype of v.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if q.dim() != 4 or q.shape != k.shape or q.shape[2:] != v.shape[2:] or len(q) != len(v):
        raise ValueError(
            f'criss_cross: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}; '
            'expected (N, E, H, W), (N, E, H, W), (N, C, H, W)'
        )
    q_row, k_row = widen(q).permute(0, 2, 3, 1), widen(k).permute(0, 2, 3, 1)  # (N, H, W, E)
    v_row = v.permute(0, 2, 3, 1)  # (N, H, W, C)
    q_col, k_col, v_col = q_row.transpose(1, 2), k_row.transpose(1, 2), v_row.transpose(1, 2)

    with without_autocast(q):
        row = q_row @ k_row.mT  # (N, H, W, W): logits of pixel (h, w) to (h, :)
        col = q_col @ k_col.mT  # (N, W, H, H): logits of pixel (h, w) to (:, w), stored at [w, h]
        at = torch.arange(q.shape[2], device=q.device)
        col = col.masked_fill(at[:, None] == at, float('-inf'))  # row has the pixel itself
        row, col = (part.to(v.dtype) for part in _CrossSoftmax.apply(row, col))
        out = row @ v_row + (col @ v_col).transpose(1, 2)  # (N, H, W, C)
    return out.permute(0, 3, 1, 2)


class _CrossSoftmax(torch.autograd.Function):
    """One softmax over the row (N, H, W, W) and the column (N, W, H, H) of each pixel.

    Between forward and backward it keeps its results alone.
    """

    @staticmethod
    def forward(row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
        peak = torch.maximum(row.amax(-1), col.amax(-1).mT)  # (N, H, W)
        row, col = (row - peak[..., None]).exp(), (col - peak.mT[..., None]).exp()
        total = row.sum(-1) + col.sum(-1).mT
        return row / total[..., None], col / total.mT[..., None]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, row_grad: Tensor, col_grad: Tensor) -> tuple[Tensor, Tensor]:
        row, col = ctx.saved_tensors
        mean = (row * row_grad).sum(-1) + (col * col_grad).sum(-1).mT  # (N, H, W)
        return row * (row_grad - mean[..., None]), col * (col_grad - mean.mT[..., None])


def criss_cross_map(q: Tensor, k: Tensor, queries: Tensor) -> Tensor:
    """The weights that `criss_cross` gives to every pixel, for chosen queries alone.

    Args:
        q: (N, E, H, W) queries.
        k: (N, E, H, W) keys.
        queries: (Q,) positions row * W + column.

    Returns:
        (N, Q, H, W), each map sums to 1 and is zero off the row and the column of its query.
    """
    height, width = q.shape[2:]
    with without_autocast(q):
        chosen = widen(q).flatten(2)[..., queries]  # (N, E, Q)
        logits = torch.einsum('neq,nehw->nqhw', chosen, widen(k))
        row = torch.arange(height, device=q.device)[:, None] == (queries // width)[:, None, None]
        column = torch.arange(width, device=q.device) == (queries % width)[:, None, None]
        logits = logits.masked_fill(~(row | column), float('-inf'))
        return logits.flatten(2).softmax(-1).reshape_as(logits)
