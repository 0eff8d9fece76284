"""Fused criss-cross attention on CUDA, in Triton: no map of weights ever reaches global memory.

Source: CCNet: Criss-Cross Attention for Semantic Segmentation, ICCV 2019, arXiv 1811.11721,
    eq. 1-2; online softmax and recomputed weights: FlashAttention, arXiv 2205.14135, alg. 1 and 4.

Each kernel runs twice, first over rows, then over columns. A program owns a tile of pixels of one
line and visits the pixels of that line tile by tile, so that a tile shares its loads and the logits
are small matrix products. The second launch continues from the output of the first and leaves out
the pixel itself, which its row has counted. No two programs write different values to one address:
there are no atomics, and results are deterministic.

Triton is optional: without it this module imports, and `fused_available` returns False. With it the
import takes a second, so import this module where it is needed, not at the top.
"""

from __future__ import annotations  # the signatures of the kernels must not need Triton

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_CAPABILITY = (8, 0)  # the first with matrix products of bf16

# The interpreter also replaces Triton's own functions, so it is on or off for good once Triton is
# imported.
_INTERPRETED = triton is not None and not isinstance(tl.max, triton.JITFunction)
_WIDE_DOT = triton and tl.constexpr(_INTERPRETED)

# Maximal tile sizes of a program, by bytes per number: pixels of a line, its own and as many
# others; channels summed over at a time; channels of its result. Compiled for capabilities 8.0 to
# 12.0 they take at most 66 KiB of shared memory and spill some 100 bytes of registers. More
# channels are divided among programs, each of which recomputes the logits.
_PIXELS = {2: 64, 4: 32}
_SUMMED = {2: 64, 4: 32}
_OWNED = {2: 128, 4: 128}


def fused_available(x: Tensor) -> bool:
    """Whether `criss_cross_fused` takes x: its dtype is known and its device runs the kernels.

    That is a CUDA device of capability 8.0 or more with Triton installed; any device in Triton's
    interpreter mode (TRITON_INTERPRET=1 in the environment when Triton is first imported).
    """
    if triton is None or x.dtype not in _DTYPES:
        return False
    if _INTERPRETED:
        return True
    on_cuda = x.is_cuda and torch.version.cuda is not None  # ROCm calls its devices cuda as well
    return on_cuda and torch.cuda.get_device_capability(x.device) >= _CAPABILITY


def criss_cross_fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """o[i, j] = sum_p softmax_p(q[i, j] . k[p]) v[p], p the H + W - 1 pixels of row i and column j.

    `criss_cross` with channels last: the pixel itself is counted once, the logits are not scaled.
    Logits, softmax and all sums are in fp32; in half precision the weights are rounded to the
    dtype of v before the product. fp32 is multiplied as fp32, not as TF32: a mantissa of 10 bits
    leaves an error of up to 1e-3 of a logit, and the exponential makes that, times the logit, the
    relative error of a weight, where fp32 holds to 1e-5. Differentiable once; saves q, k, v, o and
    one number per pixel for backward. Memory grows with the pixels times the channels.

    Args:
        q: (N, H, W, E) queries in fp32, fp16 or bf16; channels adjacent, else any strides.
        k: (N, H, W, E) keys, likewise.
        v: (N, H, W, C) values, likewise.

    Returns:
        (N, H, W, C) in the dtype of v, contiguous.

    Raises:
        ValueError: shapes, dtypes or devices that do not match; channels that are not adjacent.
        RuntimeError: `fused_available` is False here.
    """
    if q.dim() != 4 or v.dim() != 4 or q.shape != k.shape or q.shape[:3] != v.shape[:3]:
        raise ValueError(
            f'criss_cross_fused: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}; '
            'expected (N, H, W, E), (N, H, W, E), (N, H, W, C)'
        )
    if q.dtype not in _DTYPES or {(q.dtype, q.device)} != {(t.dtype, t.device) for t in (k, v)}:
        given = ', '.join(f'{t.dtype} on {t.device}' for t in (q, k, v))
        allowed = ', '.join(map(str, _DTYPES))
        raise ValueError(f'criss_cross_fused: q, k, v are {given}; allowed {allowed}, all the same')
    for name, t in dict(q=q, k=k, v=v).items():
        if t.shape[3] > 1 and t.stride(3) != 1:
            raise ValueError(
                f'criss_cross_fused: strides of {name} are {t.stride()}, the last must be 1; '
                'bring the map to channels_last and permute it, or call contiguous()'
            )
    if not fused_available(q):
        version = f'Triton {triton.__version__}' if triton else 'no Triton'
        raise RuntimeError(
            f'criss_cross_fused: {version}, tensors on {q.device}; needs Triton and a CUDA device '
            f'of capability {_CAPABILITY[0]}.{_CAPABILITY[1]} or more; `criss_cross` runs anywhere'
        )
    return _CrissCross.apply(q, k, v)


class _CrissCross(torch.autograd.Function):
    """`criss_cross_fused` on checked inputs."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
        # (N, H, W) each, log-sum-exp of the logits of a pixel: in row and column; in its row. Two
        # tensors, as the column programs of all channel slices read the second in any order.
        lse = torch.empty(v.shape[:3], dtype=torch.float32, device=v.device)
        row_lse = torch.empty_like(lse)
        for column in (False, True):
            written = lse if column else row_lse
            _launch(_attend, (q, k, v), (row_lse, written, out), q, v, v, column)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        if grad.shape[3] > 1 and grad.stride(3) != 1:  # e.g. that of a sum: one number, expanded
            grad = grad.contiguous()
        need_q, need_k, need_v = ctx.needs_input_grad
        q_grad = k_grad = v_grad = None
        if need_q or need_k:
            delta = torch.empty_like(lse)
            _launch(_delta, (grad,), (out, delta), q, v, None, False)
            # fp32 between the launches: where keys have much in common, the contributions of row
            # and column to the gradient of a query cancel, and likewise for a key.
            rows = torch.empty(q.shape, dtype=torch.float32, device=q.device)
        if need_q:
            q_grad = torch.empty(q.shape, dtype=q.dtype, device=q.device)
            for column in (False, True):
                packed = (lse, delta, rows, q_grad if column else rows)
                _launch(_pair_grad, (q, k, grad, v), packed, q, v, q, column, QUERIES_OWN=True)
        if need_k:
            k_grad = torch.empty(k.shape, dtype=k.dtype, device=k.device)
            for column in (False, True):
                packed = (lse, delta, rows, k_grad if column else rows)
                _launch(_pair_grad, (k, q, v, grad), packed, q, v, k, column, QUERIES_OWN=False)
        if need_v:
            v_grad = torch.empty(v.shape, dtype=v.dtype, device=v.device)
            for column in (False, True):
                _launch(_value_grad, (k, q, grad), (lse, v_grad), q, v, v, column)
        return q_grad, k_grad, v_grad


def _launch(
    kernel: Any,
    strided: tuple[Tensor, ...],
    packed: tuple[Tensor, ...],
    q: Tensor,
    v: Tensor,
    owned: Tensor | None,
    column: bool,
    **flags: bool,
) -> None:
    """Run a kernel: one program per tile of a line and slice of the channels of `owned`.

    Args:
        kernel: takes strided, packed, three strides of each tensor in strided, H, W, then those of
            the constants below that it names.
        strided: (N, H, W, E or C), channels adjacent.
        packed: (N, H, W) or (N, H, W, E or C), contiguous.
        q, v: (N, H, W, E), (N, H, W, C).
        owned: tensor whose channels are divided among programs; None if each program has all.
        column: whether the lines are columns.
        **flags: further constants.
    """
    count, height, width, channels = v.shape
    lines, length = (width, height) if column else (height, width)
    size = v.element_size()
    tile = _block(length, _PIXELS[size])
    own = 1 if owned is None else owned.shape[3]
    constants = dict(
        E=q.shape[3],
        C=channels,
        TILE=tile,
        E_BLOCK=_block(q.shape[3], _SUMMED[size]),
        C_BLOCK=_block(channels, _SUMMED[size]),
        SLICE=_block(own, _OWNED[size]),
        COLUMN=column,
        **flags,
    )
    programs = count * lines * triton.cdiv(length, tile) * triton.cdiv(own, constants['SLICE'])
    if programs == 0:
        return
    strides = [stride for t in strided for stride in t.stride()[:3]]
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    with torch.cuda.device_of(v):  # Triton launches on the current device
        kernel[(programs,)](
            *strided, *packed, *strides, height, width, **constants, num_warps=4, num_stages=2
        )


def _block(size: int, limit: int) -> int:
    """A power of two that holds size, within 16, the least for `tl.dot`, and limit."""
    return min(max(16, triton.next_power_of_2(size)), limit)


def _jit(kernel: Callable) -> Any:
    """`triton.jit` where there is Triton."""
    return triton.jit(kernel) if triton else kernel


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
def _load(x, starts, inside, channels, WIDTH: tl.constexpr):
    """(A, channels) of x in its dtype; 0 outside the line and from channel WIDTH on."""
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
    return tl.dot(x, y, total, input_precision='ieee')


@_jit
def _products(
    own, own_starts, own_inside, other, other_starts, other_inside,
    TILE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """(A, B) in fp32: own[a] . other[b] over WIDTH channels, BLOCK at a time."""
    total = tl.zeros((TILE, TILE), tl.float32)
    for first in range(0, WIDTH, BLOCK):
        channels = first + tl.arange(0, BLOCK)
        own_tile = _load(own, own_starts, own_inside, channels, WIDTH)  # (A, BLOCK)
        other_tile = _load(other, other_starts, other_inside, channels, WIDTH)  # (B, BLOCK)
        total = _dot(own_tile, tl.trans(other_tile), total)
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
    return tl.where(attended, tl.exp(tl.minimum(logits - lse, 0.0)), 0.0)


@_jit
def _attend(
    q, k, v, row_lse, lse, out,
    q_n, q_h, q_w, k_n, k_h, k_w, v_n, v_h, v_w, height, width,
    E: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, E_BLOCK: tl.constexpr,
    SLICE: tl.constexpr, COLUMN: tl.constexpr
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
        result = _load(out, pixels * C, a_inside, channels, C).to(tl.float32)
    else:  # the first tile of a row has a key for every query, so the peak is finite from there on
        peak = tl.full((TILE,), float('-inf'), tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        result = tl.zeros((TILE, SLICE), tl.float32)
    for start in range(0, length, TILE):
        b = start + tl.arange(0, TILE)
        b_inside = b < length
        k_starts = _starts(image, line, b, k_n, k_h, k_w, COLUMN)
        v_starts = _starts(image, line, b, v_n, v_h, v_w, COLUMN)
        logits = _products(q, q_starts, a_inside, k, k_starts, b_inside, TILE, E, E_BLOCK)
        logits = tl.where(_attended(a, b, length, COLUMN), logits, float('-inf'))  # (A, B)
        higher = tl.maximum(peak, tl.max(logits, 1))
        decay = tl.exp(peak - higher)
        weights = tl.exp(logits - higher[:, None])
        total = total * decay + tl.sum(weights, 1)
        values = _load(v, v_starts, b_inside, channels, C)  # (B, SLICE)
        result = _dot(weights.to(values.dtype), values, result * decay[:, None])
        peak = higher
    _store(out, pixels * C, a_inside, channels, C, result / total[:, None])
    # the same in each slice of channels, so that one of them writes it
    tl.store(lse + pixels, peak + tl.log(total), mask=a_inside & (first_channel == 0))


@_jit
def _delta(
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
        grads = _load(grad, grad_starts, inside, channels, C).to(tl.float32)  # (A, C_BLOCK)
        total += tl.sum(grads * _load(out, pixels * C, inside, channels, C).to(tl.float32), 1)
    tl.store(delta + pixels, total, mask=inside)


@_jit
def _of_queries(x, a_pixels, a_inside, b_pixels, b_inside, QUERIES_OWN: tl.constexpr):
    """A number per query, to broadcast with (A, B): (A, 1), or (1, B) if the keys are `own`."""
    if QUERIES_OWN:
        values = tl.load(x + a_pixels, mask=a_inside, other=0.0)[:, None]
    else:
        values = tl.load(x + b_pixels, mask=b_inside, other=0.0)[None, :]
    return values


@_jit
def _pair_grad(
    own, other, own_side, other_side, lse, delta, rows, result,
    own_n, own_h, own_w, other_n, other_h, other_w,
    own_side_n, own_side_h, own_side_w, other_side_n, other_side_h, other_side_w, height, width,
    E: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, E_BLOCK: tl.constexpr,
    C_BLOCK: tl.constexpr, SLICE: tl.constexpr, COLUMN: tl.constexpr, QUERIES_OWN: tl.constexpr
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
        total = _load(rows, a_pixels * E, a_inside, channels, E)
    else:
        total = tl.zeros((TILE, SLICE), tl.float32)
    for start in range(0, length, TILE):
        b = start + tl.arange(0, TILE)
        b_inside = b < length
        b_pixels = _starts(image, line, b, height * width, width, 1, COLUMN)
        b_starts = _starts(image, line, b, other_n, other_h, other_w, COLUMN)
        b_side_starts = _starts(image, line, b, other_side_n, other_side_h, other_side_w, COLUMN)
        logits = _products(own, own_starts, a_inside, other, b_starts, b_inside, TILE, E, E_BLOCK)
        weights_grad = _products(
            own_side, own_side_starts, a_inside, other_side, b_side_starts, b_inside,
            TILE, C, C_BLOCK,
        )  # fmt: skip
        lse_tile = _of_queries(lse, a_pixels, a_inside, b_pixels, b_inside, QUERIES_OWN)
        delta_tile = _of_queries(delta, a_pixels, a_inside, b_pixels, b_inside, QUERIES_OWN)
        weights = _weights(logits, lse_tile, _attended(a, b, length, COLUMN))  # (A, B)
        logits_grad = weights * (weights_grad - delta_tile)
        others = _load(other, b_starts, b_inside, channels, E)  # (B, SLICE)
        total = _dot(logits_grad.to(others.dtype), others, total)
    _store(result, a_pixels * E, a_inside, channels, E, total)


@_jit
def _value_grad(
    k, q, grad, lse, result,
    k_n, k_h, k_w, q_n, q_h, q_w, grad_n, grad_h, grad_w, height, width,
    E: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, E_BLOCK: tl.constexpr,
    SLICE: tl.constexpr, COLUMN: tl.constexpr
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
        total = _load(result, a_pixels * C, a_inside, channels, C).to(tl.float32)
    else:
        total = tl.zeros((TILE, SLICE), tl.float32)
    for start in range(0, length, TILE):
        b = start + tl.arange(0, TILE)
        b_inside = b < length
        b_pixels = _starts(image, line, b, height * width, width, 1, COLUMN)
        q_starts = _starts(image, line, b, q_n, q_h, q_w, COLUMN)
        grad_starts = _starts(image, line, b, grad_n, grad_h, grad_w, COLUMN)
        logits = _products(k, k_starts, a_inside, q, q_starts, b_inside, TILE, E, E_BLOCK)
        lse_tile = _of_queries(lse, a_pixels, a_inside, b_pixels, b_inside, False)
        weights = _weights(logits, lse_tile, _attended(a, b, length, COLUMN))  # (A, B)
        grads = _load(grad, grad_starts, b_inside, channels, C)  # (B, SLICE)
        total = _dot(weights.to(grads.dtype), grads, total)
    _store(result, a_pixels * C, a_inside, channels, C, total)
