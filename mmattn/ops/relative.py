"""Softmax attention on a map, with a learned vector for each distance between two rows or columns.

Source: Bottleneck Transformers for Visual Recognition, CVPR 2021, arXiv 2101.11605, fig. 4.

The map over pairs is computed for a few queries at a time, and again in the backward pass; where it
is smaller than queries, keys and values it is saved instead. For torch's fused kernels and for
exporters, queries and keys are widened, by H + W channels.
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
    width[j' - j + W - 1]. Logits and softmax are computed in fp32 or wider. Never allocates a map
    over pairs that is larger than q, k and v.

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
            function = _SmallRelativeAttention if _is_small(q, v) else _RelativeAttention
            out = function.apply(*floats, v, scale, position_scale)
        return out.unflatten(2, v.shape[2:])


def _is_small(q: Tensor, v: Tensor) -> bool:
    """Whether the map over pairs is not larger than queries, keys and values."""
    return q.shape[2:].numel() <= 2 * q.shape[1] + v.shape[1]


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
    return table[at - at[:, None] + at[-1:]].mT


class _SmallRelativeAttention(torch.autograd.Function):
    """`relative_attention` of all images at once; saves the map over pairs as well."""

    @staticmethod
    def forward(ctx, q, k, height, width, v, scale, position_scale) -> Tensor:
        positions = _Positions(q.shape[2:], height, width, position_scale)
        flat_q, flat_k, flat_v = (t.flatten(2) for t in (q, k, v))
        by_row, by_column = positions.logits(flat_q)
        weights = by_row[..., None] + by_column[..., None, :]  # (N, H, W, H, W)
        weights = weights.flatten(3).flatten(1, 2).baddbmm_(flat_q.mT, flat_k, alpha=scale)
        weights = torch.softmax(weights, -1, out=weights)
        ctx.save_for_backward(q, k, height, width, v, weights)
        ctx.scales = scale, position_scale
        return torch.bmm(flat_v, weights.to(v.dtype).mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, height, width, v, weights = ctx.saved_tensors
        (scale, position_scale), size = ctx.scales, q.shape[2:]
        positions = _Positions(size, height, width, position_scale)
        q, k, wide_v, grad = (t.flatten(2) for t in (q, k, upcast(v), upcast(grad)))
        v_grad = torch.bmm(grad, weights)
        weights_grad = torch.bmm(grad.mT, wide_v)
        logits_grad = torch._softmax_backward_data(weights_grad, weights, -1, weights.dtype)
        k_grad = torch.bmm(q, logits_grad).mul_(scale)
        by_key = logits_grad.unflatten(2, size).unflatten(1, size)  # (N, H, W, H, W)
        q_grad = torch.bmm(k, logits_grad.mT).mul_(scale)
        positions.backward(q, q_grad, by_key.sum(4), by_key.sum(3))
        q_grad, k_grad, v_grad = (t.unflatten(2, size) for t in (q_grad, k_grad, v_grad))
        return q_grad, k_grad, *positions.grads, v_grad.to(v.dtype), None, None


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
            for rows, weights in _row_blocks(q[n : n + 1], k[n], scale, positions):
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
            image = q[n : n + 1]
            for rows, weights in _row_blocks(image, k[n], scale, positions):
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
            maps = (t.view(1, *size, -1) for t in (by_row, by_column))
            positions.backward(image, q_grad[n : n + 1], *maps)
        k_grad *= scale
        q_grad, k_grad, v_grad = (t.unflatten(2, size) for t in (q_grad, k_grad, v_grad))
        return q_grad, k_grad, *positions.grads, v_grad.to(v.dtype), None, None


def _row_blocks(
    q: Tensor, k: Tensor, scale: float, positions: '_Positions'
) -> Iterator[tuple[slice, Tensor]]:
    """Of an image, yield queries and their map rows (R, P), which the next iteration overwrites."""
    by_row, by_column = (t[0].flatten(0, 1) for t in positions.logits(q))  # (P, H), (P, W)
    count = k.shape[1]
    step = max(1, _ROWS // count)
    buffer = q.new_empty(min(step, count), count)
    for first in range(0, count, step):
        rows = slice(first, min(first + step, count))
        weights = buffer[: rows.stop - first]
        maps = by_row[rows, :, None], by_column[rows, None]
        torch.add(*maps, out=weights.unflatten(1, positions.size))
        _by_columns(scale * q[0, :, rows].mT, k, weights, add=True)
        yield rows, torch.softmax(weights, -1, out=weights)


class _Positions:
    """The logits of the distances for the queries of some images, and their gradients.

    Each query is multiplied with a whole table. Its distances to all rows or columns are then
    neighbours in the product, so the logits are a view of it.
    """

    def __init__(self, size: torch.Size, height: Tensor, width: Tensor, scale: float) -> None:
        self.size, self.scale = size, scale
        self.tables = [scale * table.mT for table in (height, width)]  # (E, 2 S - 1)
        self.grads = [torch.zeros_like(table) for table in (height, width)]

    def logits(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """(N, E, P) -> (N, H, W, H) for the rows of the keys, (N, H, W, W) for their columns."""
        products = (torch.bmm(q.mT, table.expand(len(q), -1, -1)) for table in self.tables)
        by_row, by_column = (self._by_key(t, axis) for axis, t in enumerate(products))
        return by_row, by_column

    def backward(self, q: Tensor, q_grad: Tensor, *grads: Tensor) -> None:
        """Add the gradients to q_grad (N, E, P) and to those of the tables.

        `grads` are those of the logits, (N, H, W, H) and (N, H, W, W).
        """
        for axis, (table, total, grad) in enumerate(
            zip(self.tables, self.grads, grads, strict=True)
        ):
            products = grad.new_zeros(len(q), q.shape[2], table.shape[1])
            self._by_key(products, axis).copy_(grad)
            q_grad.baddbmm_(table.expand(len(q), -1, -1), products.mT)
            for image, image_grad in zip(q, products, strict=True):
                total.addmm_(image_grad.mT, image.mT, alpha=self.scale)

    def _by_key(self, products: Tensor, axis: int) -> Tensor:
        """(N, P, 2 S - 1), contiguous -> its view (N, H, W, S) by the row or column of the key."""
        height, width = self.size
        count, pixels, length = products.shape
        strides = [width * length, length]
        strides[axis] -= 1  # a query one further on is one nearer to each key
        size = count, height, width, self.size[axis]
        return products.as_strided(size, (pixels * length, *strides, 1), self.size[axis] - 1)
