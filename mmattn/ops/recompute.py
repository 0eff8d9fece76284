"""Computing again in the backward pass what would otherwise be kept for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .layout import project, project_grads
from .precision import disable_autocast


def recompute_project(
    function: Callable[..., Tensor],
    weight: Tensor,
    bias: Tensor | None,
    *inputs: Tensor | None,
    scale: Tensor | None = None,
    last: bool = True,
) -> Tensor:
    """scale * project(function(*inputs), weight, bias), for which only the arguments are kept.

    For operations on large maps that cost little. Unlike `torch.utils.checkpoint`, what is kept is
    visible to `saved_tensors_hooks`, no random state is stored, and without `scale` the backward
    pass leaves out `project`, whose result it does not need. A compiler decides itself what to
    keep, so there it is the plain formula.

    Args:
        function: of the inputs alone, the same at every call, (N, C, H, W); runs without autocast.
        weight, bias: (D, C), (D) or None, of a 1x1 convolution.
        inputs: tensors, parameters too, or None. The first names the device.
        scale: (N, D, H, W), or None for 1.
        last: as in `project`.

    Returns:
        (N, D, H, W), in the dtype of `scale` if there is one.
    """
    if is_compiling():
        with disable_autocast(inputs[0]):
            y = project(function(*inputs), weight, bias, last=last)
            return y if scale is None else scale * y.to(scale.dtype)
    return _RecomputeProject.apply(function, last, scale, weight, bias, *inputs)


class _RecomputeProject(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        last: bool,
        scale: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        *inputs: Tensor | None,
    ) -> Tensor:
        ctx.function, ctx.last = function, last
        ctx.save_for_backward(scale, weight, bias, *inputs)
        with disable_autocast(inputs[0]):
            y = project(function(*inputs), weight, bias, last=last)
        return y if scale is None else scale * y.to(scale.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, weight, bias, *inputs = ctx.saved_tensors
        _, _, needs_scale, _, needs_bias, *needs = ctx.needs_input_grad
        inputs = [None if t is None else t.detach() for t in inputs]
        wanted = [t.requires_grad_() for t, need in zip(inputs, needs, strict=True) if need]
        with torch.enable_grad(), disable_autocast(inputs[0]):
            result = ctx.function(*inputs)
        y, y_grad, scale_grad = result.detach(), grad, None
        with disable_autocast(y):
            if needs_scale:
                scale_grad = project(y, weight, bias, last=ctx.last).to(grad.dtype).mul_(grad)
            if scale is not None:
                y_grad = (grad * scale).to(y.dtype)
            y_grad, *matrix_grads = project_grads(
                y, weight, y_grad.flatten(2).mT, bool(wanted), needs_bias
            )
        input_grads = [None] * len(inputs)
        if wanted:
            found = iter(torch.autograd.grad(result, wanted, y_grad, allow_unused=True))
            input_grads = [next(found) if need else None for need in needs]
        return None, None, scale_grad, *matrix_grads, *input_grads
