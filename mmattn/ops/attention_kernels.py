"""Kernels of `softmax_attention_fused`, in Triton.

Source: FlashAttention, arXiv 2205.14135, alg. 1 and 4; the log-sum-exp saved, FlashAttention-2,
    arXiv 2307.08691.

A program owns a tile of queries and a slice of the channels of the values, whose sum stays in its
registers; each slice recomputes the logits. Backward has one kernel each for q, k and v, which
recompute the weights. No two programs write different values to one address: there are no atomics,
and results are deterministic.
"""

from __future__ import annotations  # the signatures of the kernels must not need Triton

from .triton_common import dot, jit, load, of_queries, store, tl, triton

_LOG_2 = triton and tl.constexpr(0.6931471805599453)
_jit = jit('owns', 'others')


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
    queries = load(q, _starts(image, a, q_n, q_p), inside, e, E)
    peak = tl.full((OWN,), float('-inf'), tl.float32)
    total = tl.zeros((OWN,), tl.float32)
    result = tl.zeros((OWN, SLICE), tl.float32)
    for start in range(0, others, OTHER):
        b = start + tl.arange(0, OTHER)
        b_inside = b < others
        keys = load(k, _starts(image, b, k_n, k_p), b_inside, e, E)
        logits = dot(queries, tl.trans(keys), tl.zeros((OWN, OTHER), tl.float32)) * scale
        logits = tl.where(b_inside[None, :], logits, float('-inf'))
        higher = tl.maximum(peak, tl.max(logits, 1))
        decay = tl.exp2(peak - higher)
        weights = tl.exp2(logits - higher[:, None])
        total = total * decay + tl.sum(weights, 1)
        values = load(v, _starts(image, b, v_n, v_p), b_inside, c, C)
        result = dot(weights.to(values.dtype), values, result * decay[:, None])
        peak = higher
    rows = image.to(tl.int64) * owns + a
    store(out, rows * C, inside, c, C, result / total[:, None])
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
        grads = load(grad, starts, inside, c, C).to(tl.float32)
        total += tl.sum(grads * load(out, rows * C, inside, c, C).to(tl.float32), 1)
    tl.store(delta + rows, total, mask=inside)


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
    own_tile = load(own, _starts(image, a, own_n, own_p), inside, e, E)
    own_side_starts = _starts(image, a, own_side_n, own_side_p)
    rows = image.to(tl.int64) * owns + a
    if C <= CHUNK:  # stays in shared memory
        c = tl.arange(0, CHUNK)
        own_side_tile = load(own_side, own_side_starts, inside, c, C)
    total = tl.zeros((OWN, E_BLOCK), tl.float32)
    for start in range(0, others, OTHER):
        b = start + tl.arange(0, OTHER)
        b_inside = b < others
        b_rows = image.to(tl.int64) * others + b
        other_side_starts = _starts(image, b, other_side_n, other_side_p)
        weights_grad = tl.zeros((OWN, OTHER), tl.float32)
        if C <= CHUNK:
            other_side_tile = load(other_side, other_side_starts, b_inside, c, C)
            weights_grad = dot(own_side_tile, tl.trans(other_side_tile), weights_grad)
        else:
            for first in range(0, C, CHUNK):
                chunk = first + tl.arange(0, CHUNK)
                own_chunk = load(own_side, own_side_starts, inside, chunk, C)
                other_chunk = load(other_side, other_side_starts, b_inside, chunk, C)
                weights_grad = dot(own_chunk, tl.trans(other_chunk), weights_grad)
        other_tile = load(other, _starts(image, b, other_n, other_p), b_inside, e, E)
        logits = dot(own_tile, tl.trans(other_tile), tl.zeros((OWN, OTHER), tl.float32)) * scale
        weights = _weights(logits, of_queries(lse, rows, inside, b_rows, b_inside, QUERIES_OWN))
        mean = of_queries(delta, rows, inside, b_rows, b_inside, QUERIES_OWN)
        logits_grad = weights * (weights_grad - mean)
        total = dot(logits_grad.to(other_tile.dtype), other_tile, total)
    store(result, rows * E, inside, e, E, total * (scale * _LOG_2))


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
    keys = load(k, _starts(image, a, k_n, k_p), inside, e, E)
    total = tl.zeros((OWN, SLICE), tl.float32)
    for start in range(0, others, OTHER):
        b = start + tl.arange(0, OTHER)
        b_inside = b < others
        queries = load(q, _starts(image, b, q_n, q_p), b_inside, e, E)
        logits = dot(keys, tl.trans(queries), tl.zeros((OWN, OTHER), tl.float32)) * scale
        lse_tile = tl.load(lse + image.to(tl.int64) * others + b, mask=b_inside, other=0.0)
        grads = load(grad, _starts(image, b, grad_n, grad_p), b_inside, c, C)
        total = dot(_weights(logits, lse_tile[None, :]).to(grads.dtype), grads, total)
    rows = image.to(tl.int64) * owns + a
    store(result, rows * C, inside, c, C, total)
