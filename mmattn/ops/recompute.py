"""Computing again in the backward pass what would otherwise be kept for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import gradient_edge, is_compiling

from .layout import project, project_weight_grad, project_x_grad
from .precision import disable_autocast


def recompute_project(
    function: Callable[..., Tensor],
    weight: Tensor,
    bias: Tensor | None,
    *inputs: Tensor | None,
    scale: Tensor | None = None,
    last: bool = True,
    save: bool = False,
) -> Tensor:
    """scale * project(function(*inputs), weight, bias), for which only the arguments are saved.

    For operations on large maps that cost little. Unlike `torch.utils.checkpoint`, what is saved is
    visible to `saved_tensors_hooks`, no random state is stored, and without `scale` the backward
    pass leaves out `project`, whose result it does not need. A compiler decides itself what to
    save, so there it is the plain formula.

    Args:
        function: of the inputs alone, the same at every call, (N, C, H, W); runs without autocast.
        weight, bias: (D, C), (D) or None, of a 1x1 convolution.
        inputs: tensors, parameters too, or None. The first names the device.
        scale: (N, D, H, W), or None for 1.
        last: as in `project`.
        save: whether the result of `project` is saved for the gradient of `scale`, rather than
            computed again.

    Returns:
        (N, D, H, W), in the dtype of `scale` if there is one.
    """
    if is_compiling():
        with disable_autocast(inputs[0]):
            y = project(function(*inputs), weight, bias, last=last)
            return y if scale is None else scale * y.to(scale.dtype)
    return _RecomputeProject.apply(function, last, save, scale, weight, bias, *inputs)


class _RecomputeProject(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        last: bool,
        save: bool,
        scale: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        *inputs: Tensor | None,
    ) -> Tensor:
        ctx.function, ctx.last = function, last
        with disable_autocast(inputs[0]):
            y = project(function(*inputs), weight, bias, last=last)
        projected = y if save and scale is not None else None
        ctx.save_for_backward(scale, projected, weight, bias, *inputs)
        return y if scale is None else scale * y.to(scale.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, projected, weight, bias, *inputs = ctx.saved_tensors
        _, _, _, needs_scale, _, needs_bias, *needs = ctx.needs_input_grad
        inputs = [None if t is None else t.detach() for t in inputs]
        wanted = [t.requires_grad_() for t, need in zip(inputs, needs, strict=True) if need]
        with torch.enable_grad(), disable_autocast(inputs[0]):
            result = ctx.function(*inputs)
        x, size = result.detach(), result.shape[2:]
        last = x.is_contiguous(memory_format=torch.channels_last)
        result = gradient_edge(result) if wanted else None
        with disable_autocast(x):
            y_grad = grad if scale is None else (grad * scale).to(x.dtype)
            y_grad = y_grad.flatten(2).mT
            weight_grad = project_weight_grad(x, y_grad)
            bias_grad = y_grad.sum((0, 1)) if needs_bias else None
            if projected is not None or not needs_scale:
                x = None  # each map is released as soon as it can be
            input_grads = [None] * len(inputs)
            if wanted:
                x_grad = project_x_grad(y_grad, weight, size, last)
                y_grad = None
                found = torch.autograd.grad(result, wanted, x_grad, allow_unused=True)
                found, result, x_grad = iter(found), None, None
                input_grads = [next(found) if need else None for need in needs]
            scale_grad = None
            if needs_scale:
                if projected is None:
                    projected = project(x, weight, bias, last=ctx.last)
                scale_grad = projected.to(grad.dtype) * grad
        return None, None, None, scale_grad, weight_grad, bias_grad, *input_grads
