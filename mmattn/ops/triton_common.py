"""What the Triton kernels of different operations share.

Triton is optional: without it, and without a device for it, `runs_kernels` returns False. With it
the import takes a second, so import this module where it is needed, not at the top.
"""

from __future__ import annotations  # the signatures of the kernels must not need Triton

from collections.abc import Callable
from typing import Any

import torch

from mmattn.torch_compat import assume_constant_result

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

CAPABILITY = (8, 0)  # the first with matrix products of bf16

# The interpreter also replaces Triton's own functions, so it is on or off for good once Triton is
# imported.
INTERPRETED = triton is not None and not isinstance(tl.max, triton.JITFunction)
_WIDE_DOT = triton and tl.constexpr(INTERPRETED)


@assume_constant_result
def runs_kernels(device: torch.device) -> bool:
    """Whether a device runs the kernels.

    That is a CUDA device of capability 8.0 or more with Triton installed; any device in Triton's
    interpreter mode (TRITON_INTERPRET=1 in the environment when Triton is first imported).
    """
    if triton is None or INTERPRETED:
        return INTERPRETED
    on_cuda = device.type == 'cuda' and torch.version.cuda is not None  # ROCm is cuda as well
    return on_cuda and torch.cuda.get_device_capability(device) >= CAPABILITY


def block(size: int, limit: int) -> int:
    """A power of two that holds size, within 16, the least for `tl.dot`, and limit."""
    return min(max(16, triton.next_power_of_2(size)), limit)


def jit(*sizes: str) -> Callable[[Callable], Any]:
    """`triton.jit` where there is Triton; a kernel is compiled once for all values of `sizes`."""
    return lambda kernel: triton.jit(kernel, do_not_specialize=sizes) if triton else kernel


@jit()
def load(x, starts, inside, channels, WIDTH: tl.constexpr):
    """(A, channels) of x in its dtype; 0 outside and from channel WIDTH on.

    Args:
        x: pointer.
        starts: (A) offsets of the first channels.
        inside: (A), whether to read.
        channels: (channels) numbers of adjacent channels.
        WIDTH: number of channels of x.
    """
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    return tl.load(x + starts[:, None] + channels[None, :], mask=mask, other=0.0)


@jit()
def store(x, starts, inside, channels, WIDTH: tl.constexpr, values):
    """Write (A, channels) where `load` reads, in the dtype of x."""
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    tl.store(x + starts[:, None] + channels[None, :], values, mask=mask)


@jit()
def dot(x, y, total, PRECISION: tl.constexpr = 'ieee'):
    """total + x @ y in fp32; PRECISION is that of `tl.dot` for fp32."""
    if _WIDE_DOT:  # the interpreter would multiply bf16 as the integers that hold its bits
        x = x.to(tl.float32)
        y = y.to(tl.float32)
    return tl.dot(x, y, total, input_precision=PRECISION)


@jit()
def of_queries(x, a, a_inside, b, b_inside, QUERIES_OWN: tl.constexpr):
    """A number per query, to broadcast with (A, B): (A, 1), or (1, B) if b are the queries.

    Args:
        x: pointer.
        a, b: (A), (B) offsets.
        a_inside, b_inside: (A), (B), whether to read; else 0.
        QUERIES_OWN: whether a are the queries.
    """
    if QUERIES_OWN:
        values = tl.load(x + a, mask=a_inside, other=0.0)[:, None]
    else:
        values = tl.load(x + b, mask=b_inside, other=0.0)[None, :]
    return values
