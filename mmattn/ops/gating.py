"""Maps that are gated by one value a position and then projected."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .layout import empty_map, is_channels_last
from .precision import disable_autocast, to_autocast_dtype


def project_gated(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution of x * gate, for which autograd keeps x and the gate, not the product.

    Args:
        x: (N, C, H, W).
        gate: (N, 1, H, W), on the device of x.
        weight: (D, C).
        bias: (D), or None.

    Returns:
        (N, D, H, W) in the memory format of x.
    """
    x, gate, weight = (to_autocast_dtype(t) for t in (x, gate.to(x.dtype), weight))
    bias = None if bias is None else bias.to(x.dtype)
    with disable_autocast(x):
        if is_compiling():
            return torch.conv2d(x * gate, weight[:, :, None, None], bias)
        return _ProjectGated.apply(x, gate, weight, bias)


class _ProjectGated(torch.autograd.Function):
    """`project_gated` by matrix products, one image at a time, for the cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, gate, weight)
        x = _in_one_format(x)
        y = empty_map((len(x), len(weight), *x.shape[2:]), x, is_channels_last(x))
        for image, image_gate, out in zip(x, gate, y, strict=True):
            product, out = (image * image_gate).flatten(1), out.view(len(out), -1)
            if bias is None:
                torch.mm(weight, product, out=out)
            else:
                torch.addmm(bias[:, None], weight, product, out=out)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, weight = ctx.saved_tensors
        x = _in_one_format(x)
        needs_x, needs_gate, needs_weight, needs_bias = ctx.needs_input_grad
        x_grad = torch.empty_like(x) if needs_x else None
        gate_grad = torch.empty_like(gate) if needs_gate else None
        weight_grad = torch.zeros_like(weight) if needs_weight else None
        for n, (image, image_gate, image_grad) in enumerate(zip(x, gate, grad, strict=True)):
            product, image_grad = image * image_gate, image_grad.flatten(1)
            if needs_weight:
                weight_grad.addmm_(image_grad, product.flatten(1).mT)
            if needs_x or needs_gate:
                torch.mm(
                    weight.mT, image_grad, out=product.view(len(product), -1)
                )  # now its gradient
            if needs_x:
                torch.mul(product, image_gate, out=x_grad[n])
            if needs_gate:
                torch.sum(product.mul_(image), 0, keepdim=True, out=gate_grad[n])
        bias_grad = grad.sum((0, 2, 3)) if needs_bias else None
        return x_grad, gate_grad, weight_grad, bias_grad


def _in_one_format(x: Tensor) -> Tensor:
    """x channels_last as it is, or contiguous."""
    return x if is_channels_last(x) else x.contiguous()
