"""Kernels of `softmax_attention_fused`, in Triton.

Source: FlashAttention, arXiv 2205.14135, alg. 1 and 4; the log-sum-exp saved, FlashAttention-2,
    arXiv 2307.08691.

A program owns a tile of queries and a slice of the channels of the values, whose sum stays in its
registers; each slice recomputes the logits. Backward has one kernel each for q, k and v, which
recompute the weights. No two programs write different values to one address: there are no atomics,
and results are deterministic.
"""

from __future__ import annotations  # the signatures of the kernels must not need Triton

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

# The interpreter also replaces Triton's own functions, so it is on or off for good once Triton is
# imported.
INTERPRETED = triton is not None and not isinstance(tl.max, triton.JITFunction)
_WIDE_DOT = triton and tl.constexpr(INTERPRETED)
_LOG_2 = triton and tl.constexpr(0.6931471805599453)


def _jit(kernel: Callable) -> Any:
    """`triton.jit` where there is Triton; a kernel serves all numbers of positions."""
    return triton.jit(kernel, do_not_specialize=['owns', 'others']) if triton else kernel


# Below, a are the positions that a program computes results for, (A), of `owns`, and b those that
# it sums over, (B), of `others`. Logits are to base 2: so are `scale`, their factor, and `lse`.


@_jit
def _place(owns, OWN: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr):
    """Image of this program, its positions (A), its first of WIDTH channels."""
    slices = tl.cdiv(WIDTH, SLICE)
    tiles = tl.cdiv(owns, OWN)
    program = tl.program_id(0)
    tile = program // slices
    a = (tile % tiles) * OWN + tl.arange(0, OWN)
    return tile // tiles, a, (program % slices) * SLICE


@_jit
def _starts(image, positions, stride_n, stride_p):
    """Offsets of the channels of these positions; 64-bit, for large maps."""
    return image.to(tl.int64) * stride_n + positions.to(tl.int64) * stride_p


@_jit
def _load(x, starts, inside, channels, WIDTH: tl.constexpr):
    """(A, channels) of x in its dtype; 0 outside and from channel WIDTH on."""
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    return tl.load(x + starts[:, None] + channels[None, :], mask=mask, other=0.0)


@_jit
def _store(x, starts, inside, channels, WIDTH: tl.constexpr, values):
    """Write (A, channels) where `_load` reads, in the dtype of x."""
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    tl.store(x + starts[:, None] + channels[None, :], values, mask=mask)


@_jit
def _dot(x, y, total):
    """total + x @ y in fp32."""
    if _WIDE_DOT:  # the interpreter would multiply bf16 as the integers that hold its bits
        x = x.to(tl.float32)
        y = y.to(tl.float32)
    return tl.dot(x, y, total)


@_jit
def _weights(logits, lse):
    """Softmax, from logits and their log-sum-exp to base 2.

    Clamped at 1, as the order of summation in large logits differs from that of forward.
    """
    return tl.exp2(tl.minimum(logits - lse, 0.0, propagate_nan=tl.PropagateNan.ALL))


@_jit
def attend(
    q, k, v, out, lse, q_n, q_p, k_n, k_p, v_n, v_p, owns, others, scale,
    E: tl.constexpr, C: tl.constexpr, E_BLOCK: tl.constexpr, OWN: tl.constexpr,
    OTHER: tl.constexpr, SLICE: tl.constexpr
):  # fmt: skip
    """Online softmax over all keys for OWN queries and SLICE channels of the values."""
    image, a, first_channel = _place(owns, OWN, C, SLICE)
    inside = a < owns
    e = tl.arange(0, E_BLOCK)
    c = first_channel + tl.arange(0, SLICE)
    queries = _load(q, _starts(image, a, q_n, q_p), inside, e, E)
    peak = tl.full((OWN,), float('-inf'), tl.float32)
    total = tl.zeros((OWN,), tl.float32)
    result = tl.zeros((OWN, SLICE), tl.float32)
    for start in range(0, others, OTHER):
        b = start + tl.arange(0, OTHER)
        b_inside = b < others
        keys = _load(k, _starts(image, b, k_n, k_p), b_inside, e, E)
        logits = _dot(queries, tl.trans(keys), tl.zeros((OWN, OTHER), tl.float32)) * scale
        logits = tl.where(b_inside[None, :], logits, float('-inf'))
        higher = tl.maximum(peak, tl.max(logits, 1))
        decay = tl.exp2(peak - higher)
        weights = tl.exp2(logits - higher[:, None])
        total = total * decay + tl.sum(weights, 1)
        values = _load(v, _starts(image, b, v_n, v_p), b_inside, c, C)
        result = _dot(weights.to(values.dtype), values, result * decay[:, None])
        peak = higher
    rows = image.to(tl.int64) * owns + a
    _store(out, rows * C, inside, c, C, result / total[:, None])
    # the same in each slice of channels, so that one of them writes it
    tl.store(lse + rows, peak + tl.log2(total), mask=inside & (first_channel == 0))


@_jit
def delta(
    grad, out, delta, grad_n, grad_p, owns, others, scale,
    C: tl.constexpr, OWN: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """grad[a] . out[a], the softmax-weighted mean of dL/dweight."""
    image, a, _ = _place(owns, OWN, 1, 1)
    inside = a < owns
    rows = image.to(tl.int64) * owns + a
    starts = _starts(image, a, grad_n, grad_p)
    total = tl.zeros((OWN,), tl.float32)
    for first in range(0, C, CHUNK):
        c = first + tl.arange(0, CHUNK)
        grads = _load(grad, starts, inside, c, C).to(tl.float32)
        total += tl.sum(grads * _load(out, rows * C, inside, c, C).to(tl.float32), 1)
    tl.store(delta + rows, total, mask=inside)


@_jit
def _of_queries(x, a_rows, a_inside, b_rows, b_inside, QUERIES_OWN: tl.constexpr):
    """A number per query, to broadcast with (A, B): (A, 1), or (1, B) if the keys are `own`."""
    if QUERIES_OWN:
        values = tl.load(x + a_rows, mask=a_inside, other=0.0)[:, None]
    else:
        values = tl.load(x + b_rows, mask=b_inside, other=0.0)[None, :]
    return values


# Outside the map, keys, queries, values and gradients are loaded as 0, so what they meet in the
# backward kernels adds 0.


@_jit
def pair_grad(
    own, other, own_side, other_side, lse, delta, result,
    own_n, own_p, other_n, other_p, own_side_n, own_side_p, other_side_n, other_side_p,
    owns, others, scale,
    E: tl.constexpr, C: tl.constexpr, E_BLOCK: tl.constexpr, OWN: tl.constexpr,
    OTHER: tl.constexpr, CHUNK: tl.constexpr, QUERIES_OWN: tl.constexpr
):  # fmt: skip
    """Gradient of q with own, other = q, k and sides grad, v; of k with both pairs swapped.

    Both are sum_b weight (grad . v - delta) other[b], the bracket for the query and key of a and b.
    """
    image, a, _ = _place(owns, OWN, 1, 1)
    inside = a < owns
    e = tl.arange(0, E_BLOCK)
    own_tile = _load(own, _starts(image, a, own_n, own_p), inside, e, E)
    own_side_starts = _starts(image, a, own_side_n, own_side_p)
    rows = image.to(tl.int64) * owns + a
    if C <= CHUNK:  # stays in shared memory
        c = tl.arange(0, CHUNK)
        own_side_tile = _load(own_side, own_side_starts, inside, c, C)
    total = tl.zeros((OWN, E_BLOCK), tl.float32)
    for start in range(0, others, OTHER):
        b = start + tl.arange(0, OTHER)
        b_inside = b < others
        b_rows = image.to(tl.int64) * others + b
        other_side_starts = _starts(image, b, other_side_n, other_side_p)
        weights_grad = tl.zeros((OWN, OTHER), tl.float32)
        if C <= CHUNK:
            other_side_tile = _load(other_side, other_side_starts, b_inside, c, C)
            weights_grad = _dot(own_side_tile, tl.trans(other_side_tile), weights_grad)
        else:
            for first in range(0, C, CHUNK):
                chunk = first + tl.arange(0, CHUNK)
                own_chunk = _load(own_side, own_side_starts, inside, chunk, C)
                other_chunk = _load(other_side, other_side_starts, b_inside, chunk, C)
                weights_grad = _dot(own_chunk, tl.trans(other_chunk), weights_grad)
        other_tile = _load(other, _starts(image, b, other_n, other_p), b_inside, e, E)
        logits = _dot(own_tile, tl.trans(other_tile), tl.zeros((OWN, OTHER), tl.float32)) * scale
        weights = _weights(logits, _of_queries(lse, rows, inside, b_rows, b_inside, QUERIES_OWN))
        mean = _of_queries(delta, rows, inside, b_rows, b_inside, QUERIES_OWN)
        logits_grad = weights * (weights_grad - mean)
        total = _dot(logits_grad.to(other_tile.dtype), other_tile, total)
    _store(result, rows * E, inside, e, E, total * (scale * _LOG_2))


@_jit
def value_grad(
    k, q, grad, lse, result, k_n, k_p, q_n, q_p, grad_n, grad_p, owns, others, scale,
    E: tl.constexpr, C: tl.constexpr, E_BLOCK: tl.constexpr, OWN: tl.constexpr,
    OTHER: tl.constexpr, SLICE: tl.constexpr
):  # fmt: skip
    """Gradient of OWN rows and SLICE channels of v: sum_b weight grad[b]."""
    image, a, first_channel = _place(owns, OWN, C, SLICE)
    inside = a < owns
    e = tl.arange(0, E_BLOCK)
    c = first_channel + tl.arange(0, SLICE)
    keys = _load(k, _starts(image, a, k_n, k_p), inside, e, E)
    total = tl.zeros((OWN, SLICE), tl.float32)
    for start in range(0, others, OTHER):
        b = start + tl.arange(0, OTHER)
        b_inside = b < others
        queries = _load(q, _starts(image, b, q_n, q_p), b_inside, e, E)
        logits = _dot(keys, tl.trans(queries), tl.zeros((OWN, OTHER), tl.float32)) * scale
        lse_tile = tl.load(lse + image.to(tl.int64) * others + b, mask=b_inside, other=0.0)
        grads = _load(grad, _starts(image, b, grad_n, grad_p), b_inside, c, C)
        total = _dot(_weights(logits, lse_tile[None, :]).to(grads.dtype), grads, total)
    rows = image.to(tl.int64) * owns + a
    _store(result, rows * C, inside, c, C, total)
