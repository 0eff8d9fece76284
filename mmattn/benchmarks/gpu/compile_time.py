"""Seconds that kernels take to compile, and what they use of a GPU."""

import sys
import time
from types import ModuleType

import torch
from torch import nn

from mmattn import blocks, ops

from . import variants
from .bench import DTYPES, Bench, perturb_constants

_FULL = (512, (97, 97))  # channels, H and W
_SMALL = (16, (5, 7))


def measure(bench: Bench) -> None:
    """Rows 'compile': seconds of the first call without those of the second, by block and dtype."""
    channels, size = _SMALL if bench.small else _FULL
    for cls, dtypes in (blocks.CrissCrossAttention, ('bf16', 'fp32')), (blocks.PAM, ('bf16',)):
        for dtype in dtypes:
            for name, context in variants.precisions(dtype).items():
                with context():
                    block = perturb_constants(cls(channels)).to(bench.device, DTYPES[dtype])
                    _first_calls(bench, f'{cls.__name__} {dtype}{name}', block, channels, size)
    if bench.device.type == 'cuda':
        for name, module in sorted(sys.modules.items()):
            if name.startswith(f'{ops.__name__}.'):
                _kernels(bench, module)


def _first_calls(
    bench: Bench, name: str, block: nn.Module, channels: int, size: tuple[int, int]
) -> None:
    """At a size, then at another one, for which kernels may be compiled again."""
    for label, (height, width) in dict(first=size, other=(size[0] - 1, size[1] + 2)).items():
        x = torch.randn(1, channels, height, width, device=bench.device, requires_grad=True)
        x = x.to(next(block.parameters()).dtype)
        seconds = []
        for _ in range(2):
            bench.synchronize()
            start = time.perf_counter()
            y = block(x)
            bench.synchronize()
            middle = time.perf_counter()
            torch.autograd.grad(y, [x, *block.parameters()], y)
            bench.synchronize()
            seconds.append((middle - start, time.perf_counter() - middle))
        forward, backward = (round(a - b, 3) for a, b in zip(*seconds, strict=True))
        bench.row('compile', name=name, size=label, forward_s=forward, backward_s=backward)


def _kernels(bench: Bench, module: ModuleType) -> None:
    """Rows 'kernel': registers, spills and shared memory of what Triton has compiled of a module.

    Triton keeps these in attributes of its own, which another release may not have.
    """
    for name, kernel in vars(module).items():
        for cache in dict(getattr(kernel, 'device_caches', {})).values():
            for key, compiled in dict(cache[0]).items():
                bench.row(
                    'kernel',
                    name=name,
                    registers=getattr(compiled, 'n_regs', None),
                    spills=getattr(compiled, 'n_spills', None),
                    shared_bytes=getattr(compiled.metadata, 'shared', None),
                    warps=getattr(compiled.metadata, 'num_warps', None),
                    signature=str(key)[:300],
                )
