"""Fused softmax attention for values wider than the queries, on CUDA in half precision, in Triton.

Of torch's fused kernels some take equal widths up to 256 alone; the one for other widths holds up
to 128 channels of values in registers, and reads and writes wider results for each tile of keys.
The kernels here, in `attention_kernels`, sum slices of 256 channels in registers. They are chosen
and launched in this module and made known to autograd and to torch.compile.

Counted in operations per pair of a query and a key, with two slices (E = 64, C = 512): 4 E + 2 C =
1280 forward, and three times as many backward; the naive form has 2 E + 2 C = 1152 and twice as
many, and in addition writes and reads a map over all pairs several times. One image of 97 x 97
pixels makes 148 programs forward and 74 for the gradient of q or k, so a large GPU needs several
images to be busy. Compiled for capability 9.0 nothing spills and all products run on tensor cores;
for 8.0 and 8.6 some instructions spill. Times await a GPU.

Triton is optional: without it this module imports, and `fused_available` returns False. With it the
import takes a second, so import this module where it is needed, not at the top.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils import flop_counter

from . import attention_kernels as kernels
from .triton_common import CAPABILITY, block, runs_kernels, triton

_DTYPES = (torch.float16, torch.bfloat16)
_MAX_E, _MAX_C = 128, 1024  # channels of queries and keys, of values
_HAS_CUSTOM_OP = hasattr(torch.library, 'custom_op')  # from torch 2.4 on
_LOG2_E = 1.4426950408889634

# Maximal tile sizes of a program, powers of two from 16 on: positions whose result it computes;
# positions that it sums over at a time; channels of values in its result; channels of values that
# it sums over at a time, where they do not all fit into shared memory.
_OWN = 128
_OTHER = 64
_SLICE = 256
_CHUNK = 64
_WARPS = 8
_STAGES = 2  # a tile is fetched while another is in use


def fused_available(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `softmax_attention_fused` takes these: half precision, widths, device, torch."""
    dtypes_match = v.dtype in _DTYPES and q.dtype == k.dtype == v.dtype
    widths_fit = 0 < q.shape[2] <= _MAX_E and 0 < v.shape[2] <= _MAX_C and k.shape[1] > 0
    return dtypes_match and widths_fit and _HAS_CUSTOM_OP and runs_kernels(v.device)


def softmax_attention_fused(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """o[p] = sum_s softmax_s(scale * q[p] . k[s]) v[s], `softmax_attention` with channels last.

    Logits, softmax and all sums are in fp32; weights, and gradients of logits, are rounded to the
    dtype of the inputs before they are multiplied. A query that is not finite gives NaN.
    Differentiable once; saves q, k, v, o and one number per query for backward. One operator, for
    torch.compile, tensors without values and counters of FLOP, too.

    Args:
        q: (N, P, E) queries in fp16 or bf16, E up to 128; channels adjacent, else any strides.
        k: (N, S, E) keys, likewise, at least one.
        v: (N, S, C) values, likewise, C up to 1024.
        scale: factor of the logits.

    Returns:
        (N, P, C) in the dtype of v, contiguous.

    Raises:
        ValueError: shapes or devices that do not match; channels that are not adjacent.
        RuntimeError: `fused_available` is False here.
    """
    matching = k.shape == (*v.shape[:2], q.shape[-1]) and q.shape[0] == k.shape[0]
    if q.dim() != 3 or v.dim() != 3 or not matching or not q.device == k.device == v.device:
        given = ', '.join(
            f'{name} {tuple(t.shape)} on {t.device}' for name, t in dict(q=q, k=k, v=v).items()
        )
        raise ValueError(
            f'softmax_attention_fused: {given}; expected (N, P, E), (N, S, E), (N, S, C) '
            'on one device'
        )
    for name, t in dict(q=q, k=k, v=v).items():
        if t.shape[2] > 1 and t.stride(2) != 1:
            raise ValueError(
                f'softmax_attention_fused: strides of {name} are {t.stride()}, the last must be 1; '
                'call contiguous()'
            )
    if not fused_available(q, k, v):
        version = f'Triton {triton.__version__}' if triton else 'no Triton'
        raise RuntimeError(
            f'softmax_attention_fused: {version}, {q.dtype}, {k.dtype}, {v.dtype} on {v.device}, '
            f'E={q.shape[2]}, C={v.shape[2]}, {k.shape[1]} keys; needs Triton, a CUDA device of '
            f'capability {CAPABILITY[0]}.{CAPABILITY[1]} or more, fp16 or bf16, E up to {_MAX_E}, '
            f'C up to {_MAX_C} and a key; `softmax_attention` takes anything'
        )
    return torch.ops.mmattn.softmax_attention(q, k, v, scale)[0]


def _register() -> None:
    """Register `softmax_attention_fused` on checked inputs as an operator.

    Compilers do not look into it. One that they do look into, `torch.library.triton_op`, could not
    run in Triton's interpreter.
    """
    forward = torch.library.custom_op('mmattn::softmax_attention', _forward, mutates_args=())
    backward = torch.library.custom_op(
        'mmattn::softmax_attention_backward', _backward, mutates_args=()
    )

    @forward.register_fake
    def forward_shapes(q, k, v, scale) -> tuple[Tensor, Tensor]:
        out = v.new_empty(*q.shape[:2], v.shape[2])
        return out, q.new_empty(q.shape[:2], dtype=torch.float32)

    @backward.register_fake
    def backward_shapes(grad, q, k, v, out, lse, scale, needed) -> list[Tensor]:
        return [t.new_empty(t.shape) for t, need in zip((q, k, v), needed, strict=True) if need]

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(output[1])

    def differentiate(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        needed = list(ctx.needs_input_grad[:3])
        grads = iter(backward(grad, *ctx.saved_tensors, ctx.scale, needed))
        return *(next(grads) if is_needed else None for is_needed in needed), None

    forward.register_autograd(differentiate, setup_context=save)

    @flop_counter.register_flop_formula(torch.ops.mmattn.softmax_attention)
    def forward_flop(q, k, v, *args: Any, **kwargs: Any) -> int:
        return 2 * q[0] * q[1] * k[1] * (q[2] + v[2])

    @flop_counter.register_flop_formula(torch.ops.mmattn.softmax_attention_backward)
    def backward_flop(grad, q, k, v, *args: Any, **kwargs: Any) -> int:
        """With the logits once again, as torch counts its own."""
        return 2 * q[0] * q[1] * k[1] * (3 * q[2] + 2 * v[2])


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Result (N, P, C) and, per query, the binary logarithm of the sum of exponentials (N, P)."""
    out = v.new_empty(*q.shape[:2], v.shape[2])
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    _launch(kernels.attend, (q, k, v), (out, lse), v, k.shape[1], scale)
    return out, lse


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    needed: list[bool],
) -> list[Tensor]:
    """Gradients, contiguous, of those of q, k, v that need one."""
    if grad.shape[2] > 1 and grad.stride(2) != 1:  # e.g. that of a sum: one number, expanded
        grad = grad.contiguous()
    queries, keys = q.shape[1], k.shape[1]
    need_q, need_k, need_v = needed
    grads = [t.new_empty(t.shape) for t, need in zip((q, k, v), needed, strict=True) if need]
    if need_q or need_k:
        delta = torch.empty_like(lse)
        _launch(kernels.delta, (grad,), (out, delta), v, keys, scale)
    if need_q:
        packed = (lse, delta, grads[0])
        _launch(kernels.pair_grad, (q, k, grad, v), packed, v, keys, scale, QUERIES_OWN=True)
    if need_k:
        packed = (lse, delta, grads[need_q])
        _launch(kernels.pair_grad, (k, q, v, grad), packed, v, queries, scale, QUERIES_OWN=False)
    if need_v:
        _launch(kernels.value_grad, (k, q, grad), (lse, grads[-1]), v, queries, scale)
    return grads


def _launch(
    kernel: Any,
    strided: tuple[Tensor, ...],
    packed: tuple[Tensor, ...],
    v: Tensor,
    others: int,
    scale: float,
    **flags: bool,
) -> None:
    """Run a kernel: one program per tile of positions and, if it has slices, slice of channels.

    Args:
        kernel: takes strided, packed, two strides of each tensor in strided, the positions of the
            first, others, the scale of logits to base 2, then those of the constants below that it
            names.
        strided: (N, positions, E or C), channels adjacent; a program owns positions of the first.
        packed: (N, positions) or (N, positions, E or C), contiguous.
        v: (N, S, C).
        others: number of positions that are summed over.
        scale: factor of the logits.
        **flags: further constants.
    """
    count, owns, width = strided[0].shape
    own, e_block = block(owns, _OWN), block(width, _MAX_E)
    other, chunk = _OTHER, _CHUNK
    if kernel is kernels.pair_grad:
        other, chunk = _pair_tiles(own, e_block, block(v.shape[2], _MAX_C), v.device)
    constants = dict(
        E=width,
        C=v.shape[2],
        E_BLOCK=e_block,
        OWN=own,
        OTHER=block(others, other),
        SLICE=block(v.shape[2], _SLICE),
        CHUNK=block(v.shape[2], chunk),
        **flags,
    )
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    slices = triton.cdiv(v.shape[2], constants['SLICE']) if 'SLICE' in constants else 1
    programs = count * triton.cdiv(owns, own) * slices
    if programs == 0:
        return
    strides = [stride for t in strided for stride in t.stride()[:2]]
    options = dict(num_warps=_WARPS, num_stages=_STAGES)
    with torch.cuda.device_of(v):  # Triton launches on the current device
        kernel[(programs,)](
            *strided, *packed, *strides, owns, others, scale * _LOG2_E, **constants, **options
        )


def _pair_tiles(own: int, e_block: int, c_block: int, device: torch.device) -> tuple[int, int]:
    """Positions and channels of values to sum over at a time in `pair_grad`.

    All channels at a time where they fit into shared memory for own and, being fetched ahead, two
    tiles of other positions. A multiprocessor then fetches OTHER (E + C) numbers per tile, else
    OWN C more: at OWN 128 and C 512 that is 26 or 94 bytes per cycle of its tensor cores, of which
    the L2 cache of a data centre GPU delivers some 30.
    """
    for other in (_OTHER, _OTHER // 2):
        if 2 * (own + 2 * other) * (e_block + c_block) <= _shared_memory(device):
            return other, c_block
    return _OTHER, _CHUNK


def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have, at least."""
    large = device.type == 'cuda' and torch.cuda.get_device_capability(device)[0] in (9, 10)
    return (227 if large else 99) << 10


if _HAS_CUSTOM_OP:
    _register()
