"""Residual addition of a map in channels_last to a contiguous one."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .layout import channels_last, match_memory_format

_PIXELS = 256  # at a time, whose transposed values fit into the cache


def residual_add(x: Tensor, y: Tensor) -> Tensor:
    """x + y in the dtype and memory format of x, both (N, C, H, W).

    On a CPU no copy of y in the format of x is made: blocks of it are transposed in the cache.
    """
    y = y.to(x.dtype)
    formats_differ = x.is_contiguous() and y.is_contiguous(memory_format=torch.channels_last)
    if is_compiling() or not x.is_cpu or not formats_differ or y.is_contiguous():
        return x + match_memory_format(y, x)
    return _ResidualAdd.apply(x, y)


class _ResidualAdd(torch.autograd.Function):
    """x + y, x contiguous and y in channels_last; saves nothing for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        out = torch.empty_like(x)
        pixels = x.shape[2:].numel()
        buffer = x.new_empty(x.shape[1], _PIXELS)
        for tensors in zip(*(t.flatten(2) for t in (x, y, out)), strict=True):
            for first in range(0, pixels, _PIXELS):
                source, other, target = (t[:, first : first + _PIXELS] for t in tensors)
                count = source.shape[1]
                # torch transposes by tiles if the target is contiguous
                block = buffer if count == _PIXELS else other.new_empty(other.shape)
                torch.add(source, block.copy_(other), out=target)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, channels_last(grad)
