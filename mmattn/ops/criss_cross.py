"""Criss-cross attention: every pixel looks at its own row and its own column.

Source: CCNet: Criss-Cross Attention for Semantic Segmentation, ICCV 2019,
    arXiv 1811.11721, eq. 1-2.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .memory import require
from .precision import disable_autocast, upcast

_BLOCK = 1 << 23  # weights at a time: 32 MB in fp32, more than which makes nothing faster


def criss_cross(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """o[i, j] = sum_p softmax_p(q[i, j] . k[p]) v[p], p the H + W - 1 pixels of row i and column j.

    The pixel itself is counted once. The logits are not scaled. Logits and softmax are computed in
    fp32 or wider whatever the inputs are, so half precision does not overflow; under autocast too.
    Copies nothing that is in channels_last.

    Args:
        q: (N, E, H, W) queries.
        k: (N, E, H, W) keys.
        v: (N, C, H, W) values.

    Returns:
        (N, C, H, W) in the dtype of v, in channels_last.

    Raises:
        ValueError: the shapes do not fit each other.
        MemoryError: less is free than the result takes.
    """
    same = q.shape == k.shape and q.shape[2:] == v.shape[2:] and q.shape[0] == v.shape[0]
    if q.dim() != 4 or not same:
        raise ValueError(
            f'criss_cross: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}; '
            'expected (N, E, H, W), (N, E, H, W), (N, C, H, W)'
        )
    require(v.numel() * v.element_size(), v, 'criss-cross attention')
    q, k, v = (t.permute(0, 2, 3, 1) for t in (q, k, v))  # (N, H, W, E or C)
    with disable_autocast(q):
        if torch.compiler.is_compiling():  # a graph has no loop over blocks
            out = _whole(q, k, v)
        else:
            adjacent = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
            out = _attention(v)(*adjacent)
    return out.permute(0, 3, 1, 2)


def _attention(v: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The fastest form for a tensor: one kernel on a GPU with Triton, else matrix products."""
    if v.is_cuda:
        from .criss_cross_triton import criss_cross_fused, fused_available  # the import takes 1 s

        if fused_available(v):
            return criss_cross_fused
    return _CrissCross.apply


class _CrissCross(torch.autograd.Function):
    """`criss_cross` on (N, H, W, E), (N, H, W, E), (N, H, W, C), by blocks of rows of an image.

    Between forward and backward it keeps q, k and v alone; the weights are computed again.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        out = v.new_empty(v.shape)
        for n, rows, weights in _blocks(upcast(q), upcast(k)):
            row, column = _parts(weights.to(v.dtype))
            torch.bmm(row, v[n, rows], out=out[n, rows])
            out[n, rows].transpose(0, 1).baddbmm_(column, v[n].transpose(0, 1))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = ctx.saved_tensors
        q, k, v, grad = (upcast(t) for t in (*kept, grad.contiguous()))
        q_grad, k_grad, v_grad = (t.new_empty(t.shape) for t in (q, k, v))
        for n, rows, weights in _blocks(q, k):
            of_rows = grad[n, rows]
            logits = _pairs(of_rows, v[n], rows, torch.empty_like(weights))  # the weights' gradient
            logits = torch._softmax_backward_data(logits, weights, -1, weights.dtype)
            row, column = _parts(weights)
            _add_to_keys(v_grad[n], rows, row, column, of_rows)
            row, column = _parts(logits)
            torch.bmm(row, k[n, rows], out=q_grad[n, rows])
            q_grad[n, rows].transpose(0, 1).baddbmm_(column, k[n].transpose(0, 1))
            _add_to_keys(k_grad[n], rows, row, column, q[n, rows])
        return tuple(g.to(t.dtype) for g, t in zip((q_grad, k_grad, v_grad), kept, strict=True))


def _blocks(q, k):
    """Image, block of its rows and their weights (h, W, W + H), overwritten by the next block."""
    height, width = q.shape[1:3]
    count = min(height, max(1, _BLOCK // (width * (width + height))))
    room = q.new_empty(count, width, width + height)
    for n in range(len(q)):
        for first in range(0, height, count):
            rows = slice(first, min(first + count, height))
            weights = _pairs(q[n, rows], k[n], rows, room[: rows.stop - first])
            own = weights[..., width + first :].diagonal(dim1=0, dim2=2)  # (W, h)
            own.fill_(float('-inf'))  # the row has the pixel itself
            yield n, rows, torch.softmax(weights, -1, out=weights)


def _pairs(x: Tensor, y: Tensor, rows: slice, room: Tensor) -> Tensor:
    """Products of the pixels of some rows, (h, W, C), with their rows and columns of y, (H, W, C).

    Into room, (h, W, W + H): first the pixels of the row, then those of the column.
    """
    row, column = _parts(room)
    torch.bmm(x, y[rows].mT, out=row)
    torch.bmm(x.transpose(0, 1), y.transpose(0, 1).mT, out=column)
    return room


def _parts(room: Tensor) -> tuple[Tensor, Tensor]:
    """(h, W, W + H) -> the views (h, W, W) on rows, and (W, h, H) on columns."""
    width = room.shape[1]
    return room[..., :width], room[..., width:].transpose(0, 1)


def _add_to_keys(out: Tensor, rows: slice, row: Tensor, column: Tensor, x: Tensor) -> None:
    """Add to each pixel of out, (H, W, C), what the pixels of x, (h, W, C), that see it weigh.

    The first rows find out without values and write them.
    """
    columns = out.transpose(0, 1), column.mT, x.transpose(0, 1)
    if rows.start:
        columns[0].baddbmm_(*columns[1:])
    else:
        torch.bmm(*columns[1:], out=columns[0])
    out[rows].baddbmm_(row.mT, x)


def _whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same in operations that any compiler and exporter knows."""
    height, width = q.shape[1:3]
    columns = [t.transpose(1, 2) for t in (q, k, v)]  # (N, W, H, E or C)
    row = upcast(q) @ upcast(k).mT  # (N, H, W, W)
    column = upcast(columns[0]) @ upcast(columns[1]).mT  # (N, W, H, H)
    at = torch.arange(height, device=q.device)
    column = column.masked_fill(at[:, None] == at, float('-inf'))  # row has the pixel itself
    weights = torch.cat([row, column.transpose(1, 2)], -1).softmax(-1).to(v.dtype)
    row, column = weights.split([width, height], -1)
    return row @ v + (column.transpose(1, 2) @ columns[2]).transpose(1, 2)


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
    with disable_autocast(q):
        chosen = upcast(q).flatten(2)[..., queries]  # (N, E, Q)
        logits = torch.einsum('neq,nehw->nqhw', chosen, upcast(k))
        row = torch.arange(height, device=q.device)[:, None] == (queries // width)[:, None, None]
        column = torch.arange(width, device=q.device) == (queries % width)[:, None, None]
        logits = logits.masked_fill(~(row | column), float('-inf'))
        return logits.flatten(2).softmax(-1).reshape_as(logits)
