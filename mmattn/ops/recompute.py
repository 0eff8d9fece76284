"""Computing again in the backward pass what would otherwise be kept for it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .layout import project, project_grads
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


def recompute_project(
    function: Callable[..., Tensor],
    weight: Tensor,
    bias: Tensor | None,
    *inputs: Tensor | None,
    scale: Tensor | None = None,
    last: bool = True,
) -> Tensor:
    """scale * project(function(*inputs), weight, bias), for which only the arguments are kept.

    Without `scale` the backward pass leaves out `project`, as it does not need the result.

    Args:
        function: as in `recompute`; it gives (N, C, H, W).
        weight, bias: (D, C), (D) or None, of a 1x1 convolution.
        inputs: of the function.
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
        return None, *_grads(ctx.function, ctx.saved_tensors, needs, lambda y: grad)


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
        others = []  # gradients of scale, weight and bias

        def through(y: Tensor) -> Tensor:
            """The gradient of the result of the function."""
            y, y_grad, scale_grad = y.detach(), grad, None
            with disable_autocast(y):
                if needs_scale:
                    scale_grad = project(y, weight, bias, last=ctx.last).to(grad.dtype).mul_(grad)
                if scale is not None:
                    y_grad = (grad * scale).to(y.dtype)
                y_grad, *matrix_grads = project_grads(
                    y, weight, y_grad.flatten(2).mT, needs_x=True, needs_bias=needs_bias
                )
            others.extend([scale_grad, *matrix_grads])
            return y_grad

        input_grads = _grads(ctx.function, inputs, needs, through)
        return None, None, *others, *input_grads


def _grads(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    needs: Sequence[bool],
    grad_of: Callable[[Tensor], Tensor],
) -> list[Tensor | None]:
    """Gradients of function(*inputs) for those inputs that need one; `grad_of` gives that of y."""
    inputs = [None if t is None else t.detach() for t in inputs]
    wanted = [t.requires_grad_() for t, need in zip(inputs, needs, strict=True) if need]
    with torch.enable_grad(), disable_autocast(inputs[0]):
        y = function(*inputs)
    grad = grad_of(y)
    if not wanted:
        return [None] * len(inputs)
    found = iter(torch.autograd.grad(y, wanted, grad, allow_unused=True))
    return [next(found) if need else None for need in needs]
