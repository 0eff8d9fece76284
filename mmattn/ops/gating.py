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
        weight = weight[:, :, None, None]
        return torch.conv2d(x * gate, weight, bias, dilation=_dilation(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, weight = ctx.saved_tensors
        needs, size, one, zero = ctx.needs_input_grad, [len(weight)], [1, 1], [0, 0]
        mask, product = [needs[0] or needs[1], needs[2], needs[3]], x * gate
        product_grad, weight_grad, bias_grad = torch.ops.aten.convolution_backward(
            grad,
            product,
            weight[:, :, None, None],
            size,
            one,
            zero,
            2 * [_dilation(x)],
            False,
            zero,
            1,
            mask,
        )
        gate_grad = None
        if needs[1]:
            gate_grad = torch.mul(product_grad, x, out=product).sum(1, keepdim=True)
        x_grad = product_grad.mul_(gate) if needs[0] else None
        return x_grad, gate_grad, weight_grad[:, :, 0, 0] if needs[2] else None, bias_grad


def _dilation(x: Tensor) -> int:
    """Of a 1x1 kernel, where it means nothing.

    In one thread and for small batches, torch gives a 1x1 convolution to oneDNN, which is faster,
    only if it is dilated.
    """
    return 2 if x.device.type == 'cpu' else 1
