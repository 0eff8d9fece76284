"""Maps that are gated by one value a position and then projected."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

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
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, gate, weight)
        return _conv1x1(x * gate, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        x_grad = gate_grad = weight_grad = None
        if needs[0] or needs[1]:
            product_grad = _conv1x1(grad, weight.mT)
            gate_grad = (product_grad * x).sum(1, keepdim=True)
            x_grad = product_grad.mul_(gate)
        if needs[2]:
            weight_grad = torch.zeros_like(weight)
            for image_grad, image in zip(grad.flatten(2), (x * gate).flatten(2), strict=True):
                weight_grad.addmm_(image_grad, image.mT)
        return x_grad, gate_grad, weight_grad, grad.sum((0, 2, 3)) if needs[3] else None


def _conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, C, H, W), (D, C), (D) -> (N, D, H, W)."""
    weight = weight[:, :, None, None]
    if x.device.type == 'cpu' and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # oneDNN's, which torch does not choose for small batches in one thread, is faster
        return torch.mkldnn_convolution(x, weight, bias, (0, 0), (1, 1), (1, 1), 1)
    return torch.conv2d(x, weight, bias)
