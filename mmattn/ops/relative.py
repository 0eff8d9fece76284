"""Softmax attention on a map, with a learned vector for each distance between two rows or columns.

Source: Bottleneck Transformers for Visual Recognition, CVPR 2021, arXiv 2101.11605, fig. 4.

The logits of the distances are computed for a few queries at a time, as the map over pairs is. For
torch's fused kernels and for exporters, queries and keys are widened instead, by H + W channels.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .memory import require
from .non_local import _by_columns, _bytes, softmax_attention
from .precision import disable_autocast, upcast

_ROWS = 1 << 20  # elements of the map at a time: 4 MB in fp32
_ONE = 64.0  # in place of 1 in one-hot keys, so that fp16 holds logits of up to 64 * 65504


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height: Tensor,
    width: Tensor,
    scale: float = 1.0,
    position_scale: float = 1.0,
) -> Tensor:
    """o[p] = sum_s softmax_s(scale * q[p] . k[s] + position_scale * (q[p] . (r + c))) v[s].

    For a query at (i, j) and a key at (i', j'), r is height[i' - i + H - 1] and c is
    width[j' - j + W - 1]. Logits and softmax are computed in fp32 or wider. Never allocates the map
    over pairs.

    Args:
        q: (N, E, H, W) queries.
        k: (N, E, H, W) keys.
        v: (N, C, H, W) values.
        height: (2 H - 1, E), a vector for each distance from query to key in rows.
        width: (2 W - 1, E), the same in columns.
        scale: factor of the products of queries and keys.
        position_scale: factor of the products of queries and distances.

    Returns:
        (N, C, H, W) in the dtype of v.

    Raises:
        MemoryError: less memory is free than the result and copies of the inputs take.
    """
    with disable_autocast(q):
        if is_compiling() or not v.is_cpu:
            pairs = relative_pairs(q, k, height, width, scale, position_scale)
            wide_q, wide_k = (t.flatten(2).to(v.dtype) for t in pairs)
            out = softmax_attention(wide_q, wide_k, v.flatten(2))
        else:
            require(_bytes(v, q.numel(), k.numel(), 2 * v.numel()), v, 'relative attention')
            floats = (upcast(t) for t in (q, k, height, width))
            out = _RelativeAttention.apply(*floats, v, scale, position_scale)
        return out.unflatten(2, v.shape[2:])


def relative_pairs(
    q: Tensor,
    k: Tensor,
    height: Tensor,
    width: Tensor,
    scale: float = 1.0,
    position_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Queries and keys whose plain products are the logits of `relative_attention`, its arguments.

    To a query are appended its products with the distances to each row and column, to a key its
    row and its column as one-hot vectors.

    Returns:
        2 (N, E + H + W, H, W), in fp32 or wider, channels adjacent in memory.
    """
    with disable_autocast(q):
        q, k = (upcast(t).permute(0, 2, 3, 1) for t in (q, k))  # (N, H, W, E)
        rows, columns = (torch.arange(n, device=q.device) for n in q.shape[1:3])
        by_row = q @ _windows(upcast(height), rows)
        by_column = (q.transpose(1, 2) @ _windows(upcast(width), columns)).transpose(1, 2)
        factor = position_scale / _ONE
        wide_q = torch.cat([q * scale, by_row * factor, by_column * factor], 3)
        one_hot = [_ONE * (at[:, None] == at).to(k.dtype) for at in (rows, columns)]
        size = *k.shape[:3], -1
        wide_k = [k, one_hot[0][:, None].expand(size), one_hot[1].expand(size)]
        return wide_q.permute(0, 3, 1, 2), torch.cat(wide_k, 3).permute(0, 3, 1, 2)


def _windows(table: Tensor, at: Tensor) -> Tensor:
    """(2 S - 1, E), the positions 0..S-1 -> (S, E, S): query, channel, key."""
    return table[_distances(at, at)].mT


def _distances(queries: Tensor, keys: Tensor) -> Tensor:
    """(Q) and all S positions -> (Q, S) indices of key minus query in a table."""
    return keys - queries[:, None] + keys[-1:]


class _RelativeAttention(torch.autograd.Function):
    """`relative_attention` by blocks of queries; saves only its inputs for backward."""

    @staticmethod
    def forward(ctx, q, k, height, width, v, scale, position_scale) -> Tensor:
        ctx.save_for_backward(q, k, height, width, v)
        ctx.scales = scale, position_scale
        positions = _Positions(q.shape[2:], height, width, position_scale)
        q, k, v = (t.flatten(2) for t in (q, k, v))
        out = torch.empty_like(v)
        for n in range(len(q)):
            for rows, weights in _row_blocks(q[n], k[n], scale, positions):
                torch.mm(v[n], weights.to(v.dtype).mT, out=out[n, :, rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, height, width, v = ctx.saved_tensors
        (scale, position_scale), size = ctx.scales, q.shape[2:]
        positions = _Positions(size, height, width, position_scale)
        q, k, wide_v, grad = (t.flatten(2) for t in (q, k, upcast(v), upcast(grad)))
        q_grad, k_grad, v_grad = (torch.zeros_like(t) for t in (q, k, wide_v))
        by_row, by_column = (q.new_empty(size.numel(), length) for length in size)
        for n in range(len(q)):
            buffers = None
            for rows, weights in _row_blocks(q[n], k[n], scale, positions):
                if buffers is None or len(buffers[0]) != len(weights):
                    buffers = torch.empty_like(weights), torch.empty_like(weights)
                weights_grad, logits_grad = buffers
                q_rows, grad_rows = q[n, :, rows], grad[n, :, rows]  # (E, R), (C, R)
                _by_columns(grad_rows, weights, v_grad[n], add=True)
                _by_columns(grad_rows.mT, wide_v[n], weights_grad)
                torch.ops.aten._softmax_backward_data.out(
                    weights_grad, weights, -1, weights.dtype, grad_input=logits_grad
                )
                _by_columns(q_rows, logits_grad, k_grad[n], add=True)
                torch.mm(k[n], logits_grad.mT, out=q_grad[n, :, rows])
                by_key = logits_grad.unflatten(1, size)  # (R, H, W)
                torch.sum(by_key, 2, out=by_row[rows])
                torch.sum(by_key, 1, out=by_column[rows])
            q_grad[n] *= scale
            q_grad[n] += positions.backward(q[n], by_row, by_column)
        k_grad *= scale
        q_grad, k_grad, v_grad = (t.unflatten(2, size) for t in (q_grad, k_grad, v_grad))
        return q_grad, k_grad, *positions.table_grads(), v_grad.to(v.dtype), None, None


def _row_blocks(
    q: Tensor, k: Tensor, scale: float, positions: '_Positions'
) -> Iterator[tuple[slice, Tensor]]:
    """Of an image, yield queries and their map rows (R, P), which the next iteration overwrites."""
    by_row, by_column = positions.logits(q)  # (P, H), (P, W)
    count = k.shape[1]
    step = max(1, _ROWS // count)
    buffer = q.new_empty(min(step, count), count)
    for first in range(0, count, step):
        rows = slice(first, min(first + step, count))
        weights = buffer[: rows.stop - first]
        maps = by_row[rows, :, None], by_column[rows, None]
        torch.add(*maps, out=weights.unflatten(1, positions.size))
        _by_columns(scale * q[:, rows].mT, k, weights, add=True)
        yield rows, torch.softmax(weights, -1, out=weights)


class _Positions:
    """The logits of the distances for the queries of an image, and their gradients."""

    def __init__(self, size: torch.Size, height: Tensor, width: Tensor, scale: float) -> None:
        self.size, self.tables, self.scale = size, (height, width), scale
        self.places = [torch.arange(n, device=height.device) for n in size]
        pairs = zip(self.tables, self.places, strict=True)
        self.windows = [scale * _windows(table, at) for table, at in pairs]
        self.windows_grads = [torch.zeros_like(windows) for windows in self.windows]

    def logits(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """(E, P) -> (P, H) for the rows of the keys, (P, W) for their columns."""
        lines = zip(self._lines(q), self.windows, strict=True)
        by_row, by_column = (torch.bmm(line, windows) for line, windows in lines)
        return by_row.flatten(0, 1), by_column.transpose(0, 1).flatten(0, 1)

    def backward(self, q: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
        """Gradient of q (E, P) from those of the logits; adds to those of the tables."""
        grads = by_row.unflatten(0, self.size), by_column.unflatten(0, self.size).transpose(0, 1)
        for total, line, grad in zip(self.windows_grads, self._lines(q), grads, strict=True):
            total.baddbmm_(line.mT, grad)
        both = zip(grads, self.windows, strict=True)
        rows, columns = (torch.bmm(grad, windows.mT) for grad, windows in both)
        return (rows.permute(2, 0, 1) + columns.permute(2, 1, 0)).flatten(1)

    def table_grads(self) -> list[Tensor]:
        """Of all images so far, (2 H - 1, E) and (2 W - 1, E)."""
        sums = []
        for table, at, grad in zip(self.tables, self.places, self.windows_grads, strict=True):
            index = _distances(at, at).flatten()
            grad = self.scale * grad.mT.flatten(0, 1)
            sums.append(torch.zeros_like(table).index_add_(0, index, grad))
        return sums

    def _lines(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """(E, P) -> its rows (H, W, E) and its columns (W, H, E)."""
        q = q.unflatten(1, self.size)
        return q.permute(1, 2, 0), q.permute(2, 1, 0)
