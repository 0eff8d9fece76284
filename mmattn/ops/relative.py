"""Softmax attention on a map, with a learned vector for each distance between two rows or columns.

Source: Bottleneck Transformers for Visual Recognition, CVPR 2021, arXiv 2101.11605, fig. 4.

The logits of the distances are computed for a few queries at a time, as the map over pairs is. For
torch's fused kernels and for exporters, queries and keys are widened instead, by H + W channels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .memory import require
from .non_local import _by_columns, _bytes, softmax_attention
from .precision import disable_autocast, upcast

_ROWS = 1 << 20  # elements of the map at a time: 4 MB in fp32
_QUERIES, _KEYS = 512, 512  # of a part of the map in the backward pass, which fits into the cache
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
    """`relative_attention`, image by image, by blocks of queries, and for backward of keys.

    Saves its inputs, its output and the log of the sum of each softmax, (N, P).
    """

    @staticmethod
    def forward(ctx, q, k, height, width, v, scale, position_scale) -> Tensor:
        ctx.scales, size = (scale, position_scale), q.shape[2:]
        positions = _Positions(size, height, width, position_scale)
        flat_q, flat_k, flat_v = (t.flatten(2) for t in (q, k, v))
        out, log_sums = torch.empty_like(flat_v), q.new_empty(flat_q.shape[::2])
        keys = size.numel()
        count = max(1, _ROWS // keys)
        buffer = q.new_empty(min(count, keys), keys)
        for n in range(len(q)):
            by_row, by_column = positions.logits(flat_q[n])  # (P, H), (P, W)
            for rows in _slices(keys, count):
                weights = buffer[: rows.stop - rows.start]
                maps = by_row[rows, :, None], by_column[rows, None]
                torch.add(*maps, out=weights.unflatten(1, size))
                _by_columns(scale * flat_q[n, :, rows].mT, flat_k[n], weights, add=True)
                highest = weights.amax(1)
                torch.softmax(weights, -1, out=weights)
                log_sums[n, rows] = highest - weights.amax(1).log()
                torch.mm(flat_v[n], weights.to(v.dtype).mT, out=out[n, :, rows])
        ctx.save_for_backward(q, k, height, width, v, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, height, width, v, out, log_sums = ctx.saved_tensors
        (scale, position_scale), size = ctx.scales, q.shape[2:]
        positions = _Positions(size, height, width, position_scale)
        q, k, wide_v, grad = (t.flatten(2) for t in (q, k, upcast(v), upcast(grad)))
        q_grad, k_grad, v_grad = (torch.zeros_like(t) for t in (q, k, wide_v))
        # softmax-weighted mean of dL/dweight, as in FlashAttention
        minus_delta = -(grad * out).sum(1)[..., None]  # (N, P, 1)
        for n in range(len(q)):
            by_row, by_column = positions.logits(q[n])  # (P, H), (P, W)
            by_row -= log_sums[n, :, None]
            by_row_grad, by_column_grad = torch.empty_like(by_row), torch.zeros_like(by_column)
            for rows in _slices(size.numel(), _QUERIES):
                q_rows, grad_rows = q[n, :, rows], grad[n, :, rows]  # (E, R), (C, R)
                scaled = scale * q_rows.mT
                for band in _slices(size[0], max(1, _KEYS // size[1])):
                    keys = slice(band.start * size[1], band.stop * size[1])
                    weights = (by_row[rows, band, None] + by_column[rows, None]).flatten(1)
                    weights.addmm_(scaled, k[n, :, keys]).exp_()
                    v_grad[n, :, keys].addmm_(grad_rows, weights)
                    logits_grad = torch.addmm(
                        minus_delta[n, rows], grad_rows.mT, wide_v[n, :, keys]
                    )
                    logits_grad *= weights
                    k_grad[n, :, keys].addmm_(q_rows, logits_grad)
                    q_grad[n, :, rows].addmm_(k[n, :, keys], logits_grad.mT)
                    logits_grad = logits_grad.unflatten(1, (-1, size[1]))
                    by_row_grad[rows, band] = logits_grad.sum(2)
                    by_column_grad[rows] += logits_grad.sum(1)
            q_grad[n] *= scale
            q_grad[n] += positions.backward(q[n], by_row_grad, by_column_grad)
        k_grad *= scale
        q_grad, k_grad, v_grad = (t.unflatten(2, size) for t in (q_grad, k_grad, v_grad))
        return q_grad, k_grad, *positions.grads, v_grad.to(v.dtype), None, None


def _slices(count: int, step: int) -> list[slice]:
    """Slices of `step` elements that cover `count` of them; the last may be shorter."""
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


class _Positions:
    """The logits of the distances for the queries of an image, and their gradients.

    Attributes:
        grads: gradients of both tables, over the images so far.
    """

    def __init__(self, size: torch.Size, height: Tensor, width: Tensor, scale: float) -> None:
        self.tables, self.scale = (height, width), scale
        self.grads = [torch.zeros_like(table) for table in self.tables]
        rows, columns = (torch.arange(n, device=height.device) for n in size)
        by_row = _distances(rows, rows).repeat_interleave(size[1], 0)  # (P, H)
        self.indices = by_row, _distances(columns, columns).repeat(size[0], 1)  # (P, W)

    def logits(self, q: Tensor) -> list[Tensor]:
        """(E, P) -> (P, H) for the rows of the keys, (P, W) for their columns."""
        pairs = zip(self.tables, self.indices, strict=True)
        return [(self.scale * q.mT @ table.mT).gather(1, index) for table, index in pairs]

    def backward(self, q: Tensor, *logits_grads: Tensor) -> Tensor:
        """(E, P), (P, H), (P, W) -> gradient of q; adds to those of the tables."""
        q_grad = torch.zeros_like(q)
        for k, index in enumerate(self.indices):
            products_grad = q.new_zeros(len(index), len(self.tables[k]))  # (P, 2 H - 1)
            products_grad.scatter_(1, index, self.scale * logits_grads[k])
            self.grads[k] += (q @ products_grad).mT
            q_grad += self.tables[k].mT @ products_grad.mT
        return q_grad
