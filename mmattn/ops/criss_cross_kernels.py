"""Kernels of `criss_cross_fused`, in Triton.

Source: CCNet: Criss-Cross Attention for Semantic Segmentation, ICCV 2019, arXiv 1811.11721,
    eq. 1-2; online softmax and recomputed weights: FlashAttention, arXiv 2205.14135, alg. 1 and 4.

Each kernel runs twice, first over rows, then over columns. A program owns a tile of pixels of one
line and visits the pixels of that line tile by tile, so that a tile shares its loads and the logits
are small matrix products. The second launch continues from the output of the first and leaves out
the pixel itself, which its row has counted. No two programs write different values to one address:
there are no atomics, and results are deterministic.
"""

from __future__ import annotations  # the signatures of the kernels must not need Triton

from .triton_common import dot, jit, load, of_queries, store, tl

_jit = jit('height', 'width')


# Below, a and b are indices of pixels of one line, TILE of each in a shape (A) or (B): a program
# computes results for the pixels a, whose inputs are `own`, from the pixels b, whose inputs are
# `other`.


@_jit
def _place(
    height, width,
    TILE: tl.constexpr, OWNED: tl.constexpr, SLICE: tl.constexpr, COLUMN: tl.constexpr
):  # fmt: skip
    """Image and line of this program, its first pixel in the line, its first of OWNED channels."""
    lines = width if COLUMN else height
    tiles = tl.cdiv(height if COLUMN else width, TILE)
    slices = tl.cdiv(OWNED, SLICE)
    program = tl.program_id(0)
    tile = program // slices
    line = tile // tiles
    return line // lines, line % lines, (tile % tiles) * TILE, (program % slices) * SLICE


@_jit
def _starts(image, line, pixels, stride_n, stride_h, stride_w, COLUMN: tl.constexpr):
    """(A): offsets of the channels of these pixels of the line; 64-bit, for large maps."""
    across = stride_w if COLUMN else stride_h
    along = stride_h if COLUMN else stride_w
    start = image.to(tl.int64) * stride_n + line.to(tl.int64) * across
    return start + pixels.to(tl.int64) * along


@_jit
def _products(
    own, own_starts, own_inside, other, other_starts, other_inside,
    TILE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """(A, B) in fp32: own[a] . other[b] over WIDTH channels, BLOCK at a time."""
    total = tl.zeros((TILE, TILE), tl.float32)
    for first in range(0, WIDTH, BLOCK):
        channels = first + tl.arange(0, BLOCK)
        own_tile = load(own, own_starts, own_inside, channels, WIDTH)  # (A, BLOCK)
        other_tile = load(other, other_starts, other_inside, channels, WIDTH)  # (B, BLOCK)
        total = dot(own_tile, tl.trans(other_tile), total, PRECISION)
    return total


@_jit
def _attended(a, b, length, COLUMN: tl.constexpr):
    """(A, B): whether a attends to b: b is in the line, and in a column another pixel than a."""
    attended = (b < length)[None, :]
    if COLUMN:
        attended = attended & (a[:, None] != b[None, :])
    return attended


@_jit
def _weights(logits, lse, attended):
    """Recompute the softmax, (A, B), from (A, B), (A, 1) or (1, B), (A, B).

    Clamped at 1, as the order of summation in large logits differs from that of forward.
    """
    exponent = tl.minimum(logits - lse, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(attended, tl.exp(exponent), 0.0)


@_jit
def attend(
    q, k, v, row_lse, lse, out,
    q_n, q_h, q_w, k_n, k_h, k_w, v_n, v_h, v_w, height, width,
    E: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, E_BLOCK: tl.constexpr,
    SLICE: tl.constexpr, COLUMN: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Online softmax over a line; a column continues from the result of the row of each pixel."""
    image, line, first_pixel, first_channel = _place(height, width, TILE, C, SLICE, COLUMN)
    length = height if COLUMN else width
    a = first_pixel + tl.arange(0, TILE)
    a_inside = a < length
    channels = first_channel + tl.arange(0, SLICE)
    pixels = _starts(image, line, a, height * width, width, 1, COLUMN)
    q_starts = _starts(image, line, a, q_n, q_h, q_w, COLUMN)
    # Running values: the largest logit, the sum of weights in units of its exponential, and the
    # weighted sum of values. The normalised result of a row counts as one key with logit row_lse.
    if COLUMN:
        peak = tl.load(row_lse + pixels, mask=a_inside, other=0.0)
        total = tl.full((TILE,), 1.0, tl.float32)
        result = load(out, pixels * C, a_inside, channels, C).to(tl.float32)
    else:  # the first tile of a row has a key for every query, so the peak is finite from there on
        peak = tl.full((TILE,), float('-inf'), tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        result = tl.zeros((TILE, SLICE), tl.float32)
    for start in range(0, length, TILE):
        b = start + tl.arange(0, TILE)
        b_inside = b < length
        k_starts = _starts(image, line, b, k_n, k_h, k_w, COLUMN)
        v_starts = _starts(image, line, b, v_n, v_h, v_w, COLUMN)
        logits = _products(
            q, q_starts, a_inside, k, k_starts, b_inside, TILE, E, E_BLOCK, PRECISION
        )
        logits = tl.where(_attended(a, b, length, COLUMN), logits, float('-inf'))  # (A, B)
        higher = tl.maximum(peak, tl.max(logits, 1))
        decay = tl.exp(peak - higher)
        weights = tl.exp(logits - higher[:, None])
        total = total * decay + tl.sum(weights, 1)
        values = load(v, v_starts, b_inside, channels, C)  # (B, SLICE)
        result = dot(weights.to(values.dtype), values, result * decay[:, None], PRECISION)
        peak = higher
    store(out, pixels * C, a_inside, channels, C, result / total[:, None])
    # the same in each slice of channels, so that one of them writes it
    tl.store(lse + pixels, peak + tl.log(total), mask=a_inside & (first_channel == 0))


@_jit
def delta(
    grad, out, delta, grad_n, grad_h, grad_w, height, width,
    C: tl.constexpr, TILE: tl.constexpr, C_BLOCK: tl.constexpr, COLUMN: tl.constexpr
):  # fmt: skip
    """delta[a] = grad[a] . out[a], the softmax-weighted mean of dL/dweight (FlashAttention)."""
    image, line, first_pixel, _ = _place(height, width, TILE, 1, 1, COLUMN)
    a = first_pixel + tl.arange(0, TILE)
    inside = a < (height if COLUMN else width)
    pixels = _starts(image, line, a, height * width, width, 1, COLUMN)
    grad_starts = _starts(image, line, a, grad_n, grad_h, grad_w, COLUMN)
    total = tl.zeros((TILE,), tl.float32)
    for first in range(0, C, C_BLOCK):
        channels = first + tl.arange(0, C_BLOCK)
        grads = load(grad, grad_starts, inside, channels, C).to(tl.float32)  # (A, C_BLOCK)
        total += tl.sum(grads * load(out, pixels * C, inside, channels, C).to(tl.float32), 1)
    tl.store(delta + pixels, total, mask=inside)


@_jit
def pair_grad(
    own, other, own_side, other_side, lse, delta, rows, result,
    own_n, own_h, own_w, other_n, other_h, other_w,
    own_side_n, own_side_h, own_side_w, other_side_n, other_side_h, other_side_w, height, width,
    E: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, E_BLOCK: tl.constexpr,
    C_BLOCK: tl.constexpr, SLICE: tl.constexpr, COLUMN: tl.constexpr, QUERIES_OWN: tl.constexpr,
    PRECISION: tl.constexpr
):  # fmt: skip
    """Gradient of q with own, other = q, k and sides grad, v; of k with both pairs swapped.

    Both are sum_b weight (grad . v - delta) other[b], the bracket for the query and key of a and b.
    A column adds to rows, in fp32.
    """
    image, line, first_pixel, first_channel = _place(height, width, TILE, E, SLICE, COLUMN)
    length = height if COLUMN else width
    a = first_pixel + tl.arange(0, TILE)
    a_inside = a < length
    channels = first_channel + tl.arange(0, SLICE)
    a_pixels = _starts(image, line, a, height * width, width, 1, COLUMN)
    own_starts = _starts(image, line, a, own_n, own_h, own_w, COLUMN)
    own_side_starts = _starts(image, line, a, own_side_n, own_side_h, own_side_w, COLUMN)
    if COLUMN:
        total = load(rows, a_pixels * E, a_inside, channels, E)
    else:
        total = tl.zeros((TILE, SLICE), tl.float32)
    for start in range(0, length, TILE):
        b = start + tl.arange(0, TILE)
        b_inside = b < length
        b_pixels = _starts(image, line, b, height * width, width, 1, COLUMN)
        b_starts = _starts(image, line, b, other_n, other_h, other_w, COLUMN)
        b_side_starts = _starts(image, line, b, other_side_n, other_side_h, other_side_w, COLUMN)
        logits = _products(
            own, own_starts, a_inside, other, b_starts, b_inside, TILE, E, E_BLOCK, PRECISION
        )
        weights_grad = _products(
            own_side, own_side_starts, a_inside, other_side, b_side_starts, b_inside,
            TILE, C, C_BLOCK, PRECISION,
        )  # fmt: skip
        lse_tile = of_queries(lse, a_pixels, a_inside, b_pixels, b_inside, QUERIES_OWN)
        delta_tile = of_queries(delta, a_pixels, a_inside, b_pixels, b_inside, QUERIES_OWN)
        weights = _weights(logits, lse_tile, _attended(a, b, length, COLUMN))  # (A, B)
        logits_grad = weights * (weights_grad - delta_tile)
        others = load(other, b_starts, b_inside, channels, E)  # (B, SLICE)
        total = dot(logits_grad.to(others.dtype), others, total, PRECISION)
    store(result, a_pixels * E, a_inside, channels, E, total)


@_jit
def value_grad(
    k, q, grad, lse, result,
    k_n, k_h, k_w, q_n, q_h, q_w, grad_n, grad_h, grad_w, height, width,
    E: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, E_BLOCK: tl.constexpr,
    SLICE: tl.constexpr, COLUMN: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Gradient of v at the pixels a: sum_b weight grad[b]; a column adds to the sum of the row."""
    image, line, first_pixel, first_channel = _place(height, width, TILE, C, SLICE, COLUMN)
    length = height if COLUMN else width
    a = first_pixel + tl.arange(0, TILE)
    a_inside = a < length
    channels = first_channel + tl.arange(0, SLICE)
    a_pixels = _starts(image, line, a, height * width, width, 1, COLUMN)
    k_starts = _starts(image, line, a, k_n, k_h, k_w, COLUMN)
    if COLUMN:
        total = load(result, a_pixels * C, a_inside, channels, C).to(tl.float32)
    else:
        total = tl.zeros((TILE, SLICE), tl.float32)
    for start in range(0, length, TILE):
        b = start + tl.arange(0, TILE)
        b_inside = b < length
        b_pixels = _starts(image, line, b, height * width, width, 1, COLUMN)
        q_starts = _starts(image, line, b, q_n, q_h, q_w, COLUMN)
        grad_starts = _starts(image, line, b, grad_n, grad_h, grad_w, COLUMN)
        logits = _products(
            k, k_starts, a_inside, q, q_starts, b_inside, TILE, E, E_BLOCK, PRECISION
        )
        lse_tile = of_queries(lse, a_pixels, a_inside, b_pixels, b_inside, False)
        weights = _weights(logits, lse_tile, _attended(a, b, length, COLUMN))  # (A, B)
        grads = load(grad, grad_starts, b_inside, channels, C)  # (B, SLICE)
        total = dot(weights.to(grads.dtype), grads, total, PRECISION)
    store(result, a_pixels * C, a_inside, channels, C, total)
