"""Non-local aggregation over all pairs of positions, without a map over the pairs.

Source: Non-local Neural Networks, CVPR 2018, arXiv 1711.07971, eq. 1-6.

What each form allocates beside its result, P queries and S keys of C values:

- softmax: a few rows of the map at a time, forward and backward; the backward pass computes them
  again. By torch's fused kernels where these take the tensors, else by `_RowAttention`.
- dot product: by associativity, one matrix of E x C.
- concatenation: two sorted lists and their running sums, of the size of the values.

A program that is exported holds torch's own attention operator, or for concatenation the pairs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .memory import require
from .precision import disable_autocast, upcast

_MATH = 0  # of torch.nn.attention.SDPBackend: the one that builds the map
_ROWS = 1 << 22  # elements of the map at a time: 16 MB in fp32, so that the cache holds them
_COLUMNS = 512  # of a wide product at a time
_CHANNELS = 64  # at a time in running sums, for the same reason


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """o[p] = sum_s softmax_s(scale * q[p] . k[s]) v[s], the (embedded) Gaussian of eq. 2-3.

    Logits and softmax are computed in fp32 or wider, so half precision does not overflow. Never
    allocates the (P, S) map. Fastest where the channels of q, k, v are adjacent in memory.

    Args:
        q: (N, E, P) queries.
        k: (N, E, S) keys.
        v: (N, C, S) values.
        scale: factor of the logits.

    Returns:
        (N, C, P) in the dtype of v.

    Raises:
        MemoryError: less is free than the result and copies of q, k and v take.
    """
    result = v.shape[0] * v.shape[1] * q.shape[2]
    require(_bytes(v, result, q.numel(), k.numel(), v.numel()), v, 'softmax attention')
    with disable_autocast(q):
        alike = q.dtype == k.dtype == v.dtype and q.shape[0] > 0
        if alike and (q.shape[1] == v.shape[1] or not v.is_cpu or torch.compiler.is_compiling()):
            heads = [_adjacent(t.mT)[:, None] for t in (q, k, v)]  # (N, 1, P or S, E or C)
            if torch.compiler.is_compiling() or _fused(*heads, scale):
                return _fused_attention(*heads, scale)
        return _RowAttention.apply(upcast(q), upcast(k), v, scale)


def _adjacent(x: Tensor) -> Tensor:
    """x with its last axis adjacent, which is all that the kernels ask for."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _bytes(like: Tensor, *elements: int) -> int:
    return sum(elements) * like.element_size()


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> bool:
    """Whether torch has a kernel for these tensors that does not build the map."""
    return torch._fused_sdp_choice(q, k, v, scale=scale) != _MATH


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """torch's attention on (N, 1, positions, channels) -> (N, C, P)."""
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    # kernels take the row of a query that is not finite for masked; in the formula it is NaN
    nan = (q.detach() - q.detach()).sum(-1, keepdim=True)  # or 0
    if torch.compiler.is_compiling():
        out = out + nan
    else:
        out.data.add_(nan)  # past autograd, which keeps `out` and would keep a sum beside it
    return out[:, 0].mT


def softmax_weights(q: Tensor, k: Tensor, scale: float = 1.0) -> Tensor:
    """softmax over s of scale * q[p] . k[s]: (N, E, P), (N, E, S) -> (N, P, S), rows sum to 1."""
    with disable_autocast(q):
        q = upcast(q) if scale == 1 else upcast(q) * scale
        return (q.mT @ upcast(k)).softmax(-1)


class _RowAttention(torch.autograd.Function):
    """`softmax_attention` by blocks of queries, for any widths, dtypes, layouts and devices.

    Between forward and backward it keeps q, k and v alone.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        out = v.new_empty(len(v), q.shape[2], v.shape[1])
        for n, rows, weights in _row_blocks(q, k, scale):
            torch.mm(weights.to(v.dtype), v[n].mT, out=out[n, rows])
        return out.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        wide_v, grad = upcast(v), upcast(grad)
        q_grad, k_grad, v_grad = (t.new_zeros(t.mT.shape) for t in (q, k, wide_v))  # (N, S, C)
        for n, rows, weights in _row_blocks(q, k, ctx.scale):
            of_rows = grad[n, :, rows].mT  # (R, C)
            v_grad[n].addmm_(weights.mT, of_rows)
            logits_grad = _by_columns(of_rows, wide_v[n], torch.empty_like(weights))  # of weights
            logits_grad = torch._softmax_backward_data(logits_grad, weights, -1, weights.dtype)
            if ctx.scale != 1:
                logits_grad *= ctx.scale
            torch.mm(logits_grad, k[n].mT, out=q_grad[n, rows])
            k_grad[n].addmm_(logits_grad.mT, q[n, :, rows].mT)
        return q_grad.mT, k_grad.mT, v_grad.mT.to(v.dtype), None


def _row_blocks(q, k, scale):
    """Image, block of queries and its rows of the map (R, S), overwritten by the next block."""
    positions, keys = q.shape[2], k.shape[2]
    count = max(1, _ROWS // keys)
    for n in range(len(q)):
        scaled = q[n].mT if scale == 1 else q[n].mT * scale  # (P, E)
        room = q.new_empty(min(count, positions), keys)
        for first in range(0, positions, count):
            rows = slice(first, min(first + count, positions))
            weights = room[: rows.stop - first]
            _by_columns(scaled[rows], k[n], weights)
            yield n, rows, torch.softmax(weights, -1, out=weights)


def _by_columns(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a @ b into out, (R, C) and (C, S) -> (R, S), faster than in one product."""
    for first in range(0, b.shape[1], _COLUMNS):
        part = slice(first, first + _COLUMNS)
        torch.mm(a, b[:, part], out=out[:, part])
    return out


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """o[p] = sum_s (q[p] . k[s]) v[s] / S, eq. 4 with the normalisation below it.

    Whichever of (v k^T) q and v (k^T q) takes fewer multiplications is computed; where the first
    does, no map over pairs exists. Summed in fp32 or wider.

    Args:
        q: (N, E, P) queries.
        k: (N, E, S) keys.
        v: (N, C, S) values.

    Returns:
        (N, C, P) in the dtype of v.

    Raises:
        MemoryError: less is free than the result and a copy of k take.
    """
    width, positions, values = q.shape[1], k.shape[2], v.shape[1]
    require(_bytes(v, v.shape[0] * values * q.shape[2], k.numel()), v, 'dot-product attention')
    with disable_autocast(q):
        wide_q, wide_k = upcast(q), upcast(k) / positions
        if width * values * (positions + q.shape[2]) <= positions * q.shape[2] * (width + values):
            out = (upcast(v) @ wide_k.mT) @ wide_q  # (N, C, E) @ (N, E, P)
        else:
            out = upcast(v) @ (wide_k.mT @ wide_q)  # (N, C, S) @ (N, S, P)
        return out.to(v.dtype)


def concatenation_attention(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """o[p] = sum_s relu(a[p] + b[s]) v[s] / S, eq. 5-6 with w_f [theta ; phi] = a + b.

    Query p sees the keys with b[s] > -a[p]: with the keys in descending order of b, the first few.
    Their sum is looked up in running sums, so it takes O(S log S + P log S + (P + S) C). Summed in
    fp32 or wider.

    Args:
        a: (N, P), what the weight vector of eq. 5 makes of the queries.
        b: (N, S), the same of the keys.
        v: (N, C, S) values.

    Returns:
        (N, C, P) in the dtype of v.

    Raises:
        MemoryError: less is free than the result and as much again take.
    """
    require(_bytes(v, 2 * v.shape[0] * v.shape[1] * a.shape[1]), v, 'concatenation attention')
    with disable_autocast(a):
        a, b = upcast(a), upcast(b)
        if torch.compiler.is_exporting():  # interchange formats have no search in sorted lists
            return (concatenation_weights(a, b) @ upcast(v).mT).mT.to(v.dtype)
        return _SortedRelu.apply(a, b, v)


def concatenation_weights(a: Tensor, b: Tensor) -> Tensor:
    """relu(a[p] + b[s]) / S: (N, P), (N, S) -> (N, P, S)."""
    return (upcast(a)[:, :, None] + upcast(b)[:, None, :]).relu() / b.shape[1]


class _SortedRelu(torch.autograd.Function):
    """`concatenation_attention`; keeps its inputs alone.

    The gradient of v is the same sum with the roles of queries and keys exchanged.
    """

    @staticmethod
    def forward(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
        found = [_relu_mean(*one)[0].to(v.dtype) for one in zip(a, b, upcast(v), strict=True)]
        return torch.stack(found) if found else v.new_empty(0, v.shape[1], a.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, v = ctx.saved_tensors
        grads = []
        for a1, b1, v1, grad1 in zip(a, b, upcast(v), upcast(grad), strict=True):
            seen = _relu_mean(a1, b1, v1)[1]
            v_grad, seeing = _relu_mean(b1, a1, grad1, len(b1))
            grads.append(((grad1 * seen).sum(0), (v1 * seeing).sum(0), v_grad))
        if not grads:  # an empty batch
            return tuple(torch.zeros_like(t) for t in (a, b, v))
        a_grad, b_grad, v_grad = (torch.stack(each) for each in zip(*grads, strict=True))
        return a_grad / b.shape[1], b_grad / b.shape[1], v_grad.to(v.dtype)


def _relu_mean(a: Tensor, b: Tensor, v: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """sum_s relu(a[p] + b[s]) v[s] / count, and the sum of v over the same s.

    By summation by parts: only differences of b enter, all of one sign, so a common offset of a
    against b cancels nothing.

    Args:
        a: (P).
        b: (S).
        v: (C, S).
        count: S if None.

    Returns:
        2 (C, P).
    """
    keys = len(b)
    count = keys if count is None else count
    sorted_b, order = b.sort(descending=True)
    seen_keys = torch.searchsorted(-sorted_b, a)  # how many each query sees
    margin = (a + sorted_b[(seen_keys - 1).clamp(min=0)]) / count  # (P)
    margin = torch.where(seen_keys > 0, margin, 0)
    steps = -sorted_b.diff() / count  # (S - 1)
    out, seen = v.new_empty(2, len(v), len(a))
    for first in range(0, len(v), _CHANNELS):
        part = slice(first, first + _CHANNELS)
        sums = F.pad(v[part, order].cumsum(1), (1, 0))  # at n: of the first n
        areas = F.pad(sums[:, 1:-1] * steps, (2, 0))
        # a value that is not finite reaches all queries: the formula has 0 times infinity
        areas[:, 0] = 0 * sums[:, -1]
        torch.index_select(sums, 1, seen_keys, out=seen[part])
        areas = areas.cumsum(1).index_select(1, seen_keys)
        torch.addcmul(areas, seen[part], margin, out=out[part])
    return out, seen
