"""Computing again in the backward pass what would otherwise be kept for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .precision import disable_autocast


def recompute(function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """function(*inputs), for which autograd keeps the inputs alone.

    For cheap operations on large maps. Unlike `torch.utils.checkpoint`, what is kept is visible to
    `saved_tensors_hooks`, and no random state is stored. A compiler decides itself what to keep, so
    there the function is called as it is.

    Args:
        function: a function of the inputs alone, the same at every call; it runs without autocast.
        inputs: tensors, parameters too; None where there is none. The first names the device.

    Returns:
        the result of the function, one tensor.
    """
    if is_compiling():
        with disable_autocast(inputs[0]):
            return function(*inputs)
    return _Recompute.apply(function, *inputs)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        with disable_autocast(inputs[0]):
            return function(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:]
        inputs = [None if t is None else t.detach() for t in ctx.saved_tensors]
        wanted = [t.requires_grad_() for t, need in zip(inputs, needs, strict=True) if need]
        with torch.enable_grad(), disable_autocast(inputs[0]):
            y = ctx.function(*inputs)
        found = iter(torch.autograd.grad(y, wanted, grad, allow_unused=True))
        return None, *(next(found) if need else None for need in needs)
