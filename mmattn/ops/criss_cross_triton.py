"""Fused criss-cross attention on CUDA, in Triton: no map of weights ever reaches global memory.

The kernels are in `criss_cross_kernels`; here they are chosen, launched and made known to autograd
and to torch.compile.

Triton is optional: without it this module imports, and `fused_available` returns False. With it the
import takes a second, so import this module where it is needed, not at the top.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import HAS_OLD_EXPORT, is_compiling

from . import criss_cross_kernels as kernels
from .triton_common import CAPABILITY, block, runs_kernels, triton

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# How fp32 is multiplied, as `tl.dot` names it: 'tf32x3', on tensor cores, or 'ieee', not on them.
FP32_PRECISION = 'tf32x3'


class Blocks(NamedTuple):
    """What a program of a kernel works on: maximal sizes, powers of two from 16 on.

    Attributes:
        pixels: pixels of a line, its own and as many others at a time.
        summed: channels summed over at a time.
        owned: channels of its result; more are divided among programs, each of which recomputes
            the logits.
        warps: 32 threads each, which share the work.
    """

    pixels: int
    summed: int
    owned: int
    warps: int


# By precision of the products, then by kernel. Compiled for capabilities 8.0 and 9.0 they take at
# most 88 KiB of shared memory, and none spills registers if q and v have one dtype.
BLOCKS = {
    'half': {
        kernels.attend: Blocks(64, 64, 256, 8),
        kernels.delta: Blocks(64, 64, 16, 4),
        kernels.pair_grad: Blocks(64, 32, 128, 8),
        kernels.value_grad: Blocks(64, 64, 256, 8),
    },
    'tf32x3': {
        kernels.attend: Blocks(32, 32, 128, 4),
        kernels.delta: Blocks(32, 32, 16, 4),
        kernels.pair_grad: Blocks(32, 32, 128, 4),
        kernels.value_grad: Blocks(32, 32, 128, 4),
    },
    'ieee': {
        kernels.attend: Blocks(32, 32, 128, 4),
        kernels.delta: Blocks(32, 32, 16, 4),
        kernels.pair_grad: Blocks(32, 32, 128, 4),
        kernels.value_grad: Blocks(32, 32, 128, 4),
    },
}


def fused_available(*tensors: Tensor) -> bool:
    """Whether `criss_cross_fused` takes these: dtypes that it knows, a device for the kernels."""
    return all(t.dtype in _DTYPES for t in tensors) and runs_kernels(tensors[0].device)


def criss_cross_fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """o[i, j] = sum_p softmax_p(q[i, j] . k[p]) v[p], p the H + W - 1 pixels of row i and column j.

    `criss_cross` with channels last: the pixel itself is counted once, the logits are not scaled.
    Logits, softmax and all sums are in fp32; weights are rounded to the dtype of v before the
    product. Differentiable once; saves q, k, v, o and one number per pixel for backward. Memory
    grows with the pixels times the channels. Under torch.compile it is one operator of the graph.

    fp32 is multiplied as three products of TF32 (3xTF32), not as one. x is x1 + x2 + r: x1 rounded
    to 11 significant bits, x2 the 11 bits of the rest that tensor cores take, so |x2| <= 2^-11 |x|
    and |r| <= 2^-21 |x|. x1 y1 + x1 y2 + x2 y1 leaves out x2 y2 and the products with r: at most
    5 * 2^-22 |x y|, and less in a sum, as signs differ; fp32 rounds a product by 2^-24 |x y| and
    each partial sum again. One product of TF32 leaves out 2^-10 |x y|, an error of up to 1e-3 of a
    logit, and the exponential makes that, times the logit, the relative error of a weight.

    Args:
        q: (N, H, W, E) queries in fp32, fp16 or bf16; channels adjacent, else any strides.
        k: (N, H, W, E) keys, likewise; of another dtype than q, both are promoted.
        v: (N, H, W, C) values, likewise; in a dtype of its own.

    Returns:
        (N, H, W, C) in the dtype of v, contiguous.

    Raises:
        ValueError: shapes or devices that do not match; another dtype; channels not adjacent.
        RuntimeError: `fused_available` is False here.
    """
    if q.dim() != 4 or v.dim() != 4 or q.shape != k.shape or q.shape[:3] != v.shape[:3]:
        raise ValueError(
            f'criss_cross_fused: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}; '
            'expected (N, H, W, E), (N, H, W, E), (N, H, W, C)'
        )
    if any(t.dtype not in _DTYPES or t.device != q.device for t in (q, k, v)):
        given = ', '.join(f'{t.dtype} on {t.device}' for t in (q, k, v))
        allowed = ', '.join(map(str, _DTYPES))
        raise ValueError(f'criss_cross_fused: q, k, v are {given}; allowed {allowed} on one device')
    for name, t in dict(q=q, k=k, v=v).items():
        if t.shape[3] > 1 and t.stride(3) != 1:
            raise ValueError(
                f'criss_cross_fused: strides of {name} are {t.stride()}, the last must be 1; '
                'bring the map to channels_last and permute it, or call contiguous()'
            )
    if not fused_available(q, k, v):
        version = f'Triton {triton.__version__}' if triton else 'no Triton'
        raise RuntimeError(
            f'criss_cross_fused: {version}, tensors on {q.device}; needs Triton and a CUDA device '
            f'of capability {CAPABILITY[0]}.{CAPABILITY[1]} or more; `criss_cross` runs anywhere'
        )
    if q.dtype != k.dtype:
        wider = torch.promote_types(q.dtype, k.dtype)
        q, k = q.to(wider), k.to(wider)
    if is_compiling() and not HAS_OLD_EXPORT:
        return torch.ops.mmattn.criss_cross(q, k, v)[0]
    return _CrissCross.apply(q, k, v)


def _forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Result, and (N, H, W) log-sum-exp of the logits of a pixel, in its row and column."""
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    # The row has a tensor of its own, as the column programs of all channel slices read it in any
    # order.
    lse = torch.empty(v.shape[:3], dtype=torch.float32, device=v.device)
    row_lse = torch.empty_like(lse)
    for column in (False, True):
        written = lse if column else row_lse
        _launch(kernels.attend, (q, k, v), (row_lse, written, out), q, v, v, column)
    return out, lse


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, needed: list[bool]
) -> list[Tensor]:
    """Gradients of those of q, k, v that need one."""
    if grad.shape[3] > 1 and grad.stride(3) != 1:  # e.g. that of a sum: one number, expanded
        grad = grad.contiguous()
    need_q, need_k, need_v = needed
    grads = []
    if need_q or need_k:
        delta = torch.empty_like(lse)
        _launch(kernels.delta, (grad,), (out, delta), q, v, None, False)
        # fp32 between the launches: where keys have much in common, the contributions of row
        # and column to the gradient of a query cancel, and likewise for a key.
        rows = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    if need_q:
        grads.append(torch.empty(q.shape, dtype=q.dtype, device=q.device))
        for column in (False, True):
            packed = (lse, delta, rows, grads[-1] if column else rows)
            _launch(kernels.pair_grad, (q, k, grad, v), packed, q, v, q, column, QUERIES_OWN=True)
    if need_k:
        grads.append(torch.empty(k.shape, dtype=k.dtype, device=k.device))
        for column in (False, True):
            packed = (lse, delta, rows, grads[-1] if column else rows)
            _launch(kernels.pair_grad, (k, q, v, grad), packed, q, v, k, column, QUERIES_OWN=False)
    if need_v:
        grads.append(torch.empty(v.shape, dtype=v.dtype, device=v.device))
        for column in (False, True):
            _launch(kernels.value_grad, (k, q, grad), (lse, grads[-1]), q, v, v, column)
    return grads


class _CrissCross(torch.autograd.Function):
    """`criss_cross_fused` on checked inputs, in eager mode."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = _forward(q, k, v)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = list(ctx.needs_input_grad)
        grads = iter(_backward(grad, *ctx.saved_tensors, needed))
        return tuple(next(grads) if is_needed else None for is_needed in needed)


def _register() -> None:
    """`criss_cross_fused` on checked inputs, as an operator that compilers do not look into.

    An operator of Triton kernels that they do look into, `torch.library.triton_op`, could not run
    in Triton's interpreter.
    """
    forward = torch.library.custom_op('mmattn::criss_cross', _forward, mutates_args=())
    backward = torch.library.custom_op('mmattn::criss_cross_backward', _backward, mutates_args=())

    @forward.register_fake
    def forward_shapes(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return v.new_empty(v.shape), v.new_empty(v.shape[:3], dtype=torch.float32)

    @backward.register_fake
    def backward_shapes(grad, q, k, v, out, lse, needed) -> list[Tensor]:
        return [t.new_empty(t.shape) for t, need in zip((q, k, v), needed) if need]

    def save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.mark_non_differentiable(output[1])

    def differentiate(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        needed = list(ctx.needs_input_grad)
        grads = iter(backward(grad, *ctx.saved_tensors, needed))
        return tuple(next(grads) if is_needed else None for is_needed in needed)

    forward.register_autograd(differentiate, setup_context=save)


if not HAS_OLD_EXPORT:  # else what is compiled and what is exported are indistinguishable
    _register()


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
    precision = FP32_PRECISION if torch.float32 in (q.dtype, v.dtype) else 'half'
    blocks = BLOCKS[precision][kernel]
    tile = block(length, blocks.pixels)
    own = 1 if owned is None else owned.shape[3]
    constants = dict(
        E=q.shape[3],
        C=channels,
        TILE=tile,
        E_BLOCK=block(q.shape[3], blocks.summed),
        C_BLOCK=block(channels, blocks.summed),
        SLICE=block(own, blocks.owned),
        COLUMN=column,
        PRECISION='ieee' if precision == 'half' else precision,  # half: nothing to choose
        **flags,
    )
    programs = count * lines * triton.cdiv(length, tile) * triton.cdiv(own, constants['SLICE'])
    if programs == 0:
        return
    strides = [stride for t in strided for stride in t.stride()[:3]]
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    options = dict(num_warps=blocks.warps, num_stages=2)
    with torch.cuda.device_of(v):  # Triton launches on the current device
        kernel[(programs,)](*strided, *packed, *strides, height, width, **constants, **options)
