"""Criss-cross attention: every pixel looks at its own row and its own column.

Source: CCNet: Criss-Cross Attention for Semantic Segmentation, ICCV 2019,
    arXiv 1811.11721, eq. 1-2.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling, is_exporting

from .memory import require
from .precision import disable_autocast, upcast

_BLOCK = 1 << 23  # weights at a time: 32 MB in fp32; more is not faster
_KERNEL_DEVICES = ('cuda',)


def criss_cross(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """o[i, j] = sum_p softmax_p(q[i, j] . k[p]) v[p], p the H + W - 1 pixels of row i and column j.

    The pixel itself is counted once. The logits are not scaled. Logits and softmax are computed in
    fp32 or wider whatever the inputs are, so half precision does not overflow; under autocast too.
    Queries and keys may be in another dtype than values.
    Inputs in channels_last are not copied.

    Args:
        q: (N, E, H, W) queries.
        k: (N, E, H, W) keys.
        v: (N, C, H, W) values.

    Returns:
        (N, C, H, W) in the dtype of v, in channels_last.

    Raises:
        ValueError: shapes that do not match.
        MemoryError: less memory is free than the result takes.
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
        implementation = _implementation(q, k, v)
        if implementation is not _whole:
            q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
        out = implementation(q, k, v)
    return out.permute(0, 3, 1, 2)


def _implementation(q: Tensor, k: Tensor, v: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The fastest one for these: a fused kernel on a GPU with Triton, else matrix products."""
    if v.device.type in _KERNEL_DEVICES and not is_exporting():
        # imports Triton, which may be missing and takes a second
        from .criss_cross_triton import criss_cross_fused, fused_available

        if fused_available(q, k, v):
            return criss_cross_fused
    return _whole if is_compiling() else _CrissCross.apply  # a graph has no loop over blocks


class _CrissCross(torch.autograd.Function):
    """`criss_cross` on (N, H, W, E), (N, H, W, E), (N, H, W, C), by blocks of rows of an image.

    Saves only q, k and v for backward, which recomputes the weights.
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
        saved = ctx.saved_tensors
        q, k, v, grad = (upcast(t) for t in (*saved, grad.contiguous()))
        q_grad, k_grad, v_grad = (t.new_empty(t.shape) for t in (q, k, v))
        for n, rows, weights in _blocks(q, k):
            grad_rows = grad[n, rows]
            weights_grad = _pairs(grad_rows, v[n], rows, torch.empty_like(weights))
            logits_grad = torch._softmax_backward_data(weights_grad, weights, -1, weights.dtype)
            row, column = _parts(weights)
            _add_to_keys(v_grad[n], rows, row, column, grad_rows)
            row, column = _parts(logits_grad)
            torch.bmm(row, k[n, rows], out=q_grad[n, rows])
            q_grad[n, rows].transpose(0, 1).baddbmm_(column, k[n].transpose(0, 1))
            _add_to_keys(k_grad[n], rows, row, column, q[n, rows])
        return tuple(g.to(t.dtype) for g, t in zip((q_grad, k_grad, v_grad), saved, strict=True))


def _blocks(q, k):
    """Yield image, rows and their weights (h, W, W + H), which the next iteration overwrites."""
    height, width = q.shape[1:3]
    count = min(height, max(1, _BLOCK // (width * (width + height))))
    buffer = q.new_empty(count, width, width + height)
    for n in range(len(q)):
        for first in range(0, height, count):
            rows = slice(first, min(first + count, height))
            weights = _pairs(q[n, rows], k[n], rows, buffer[: rows.stop - first])
            itself = weights[..., width + first :].diagonal(dim1=0, dim2=2)  # (W, h)
            itself.fill_(float('-inf'))  # the row has counted the pixel itself
            yield n, rows, torch.softmax(weights, -1, out=weights)


def _pairs(x: Tensor, y: Tensor, rows: slice, out: Tensor) -> Tensor:
    """Products of the pixels of some rows, (h, W, C), with their rows and columns of y, (H, W, C).

    Written into out, (h, W, W + H): first the pixels of the row, then those of the column.
    """
    row, column = _parts(out)
    torch.bmm(x, y[rows].mT, out=row)
    torch.bmm(x.transpose(0, 1), y.transpose(0, 1).mT, out=column)
    return out


def _parts(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """(h, W, W + H) -> views (h, W, W) of pixels in the row, (W, h, H) of pixels in the column."""
    width = pairs.shape[1]
    return pairs[..., :width], pairs[..., width:].transpose(0, 1)


def _add_to_keys(out: Tensor, rows: slice, row: Tensor, column: Tensor, x: Tensor) -> None:
    """Accumulate, for each pixel of out (H, W, C), the weighted pixels of x (h, W, C) that see it.

    The first call, whose rows start at 0, writes into uninitialised `out`.
    """
    columns = out.transpose(0, 1), column.mT, x.transpose(0, 1)
    if rows.start:
        columns[0].baddbmm_(*columns[1:])
    else:
        torch.bmm(*columns[1:], out=columns[0])
    out[rows].baddbmm_(row.mT, x)


def _whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`criss_cross` in operations that every compiler and exporter supports."""
    height, width = q.shape[1:3]
    columns = [t.transpose(1, 2) for t in (q, k, v)]  # (N, W, H, E or C)
    row = upcast(q) @ upcast(k).mT  # (N, H, W, W)
    column = upcast(columns[0]) @ upcast(columns[1]).mT  # (N, W, H, H)
    index = torch.arange(height, device=q.device)
    column = column.masked_fill(index[:, None] == index, float('-inf'))  # row has the pixel itself
    weights = torch.cat([row, column.transpose(1, 2)], -1).softmax(-1).to(v.dtype)
    row, column = weights.split([width, height], -1)
    return row @ v + (column.transpose(1, 2) @ columns[2]).transpose(1, 2)


def criss_cross_map(q: Tensor, k: Tensor, queries: Tensor) -> Tensor:
    """The weights that `criss_cross` gives to every pixel, for selected queries.

    Args:
        q: (N, E, H, W) queries.
        k: (N, E, H, W) keys.
        queries: (Q,) positions row * W + column.

    Returns:
        (N, Q, H, W), each map sums to 1 and is zero off the row and the column of its query.
    """
    height, width = q.shape[2:]
    with disable_autocast(q):
        selected = upcast(q).flatten(2)[..., queries]  # (N, E, Q)
        logits = torch.einsum('neq,nehw->nqhw', selected, upcast(k))
        row = torch.arange(height, device=q.device)[:, None] == (queries // width)[:, None, None]
        column = torch.arange(width, device=q.device) == (queries % width)[:, None, None]
        logits = logits.masked_fill(~(row | column), float('-inf'))
        return logits.flatten(2).softmax(-1).reshape_as(logits)
