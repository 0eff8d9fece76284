"""Convolutions of images with few channels, which keep the size of the image."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from mmattn.torch_compat import is_compiling


def same_conv(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution with zero padding, without bias: (N, A, H, W), (B, A, k, k) -> (N, B, H, W).

    k is odd. On a CPU and with one or two channels the gradient of x costs as much as the result;
    torch's own takes 10 times longer.
    """
    if is_compiling() or x.device.type != 'cpu':
        # int: torch.jit.trace of torch 2.4 takes a size for a tensor
        return F.conv2d(x, weight, padding=int(weight.shape[-1]) // 2)
    return _SameConv.apply(x, weight)


class _SameConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        x_grad = weight_grad = None
        padding = weight.shape[-1] // 2
        if needs_x:  # of a full convolution, the kernel turned round
            x_grad = F.conv2d(grad, weight.flip(2, 3).transpose(0, 1), padding=padding)
        if needs_weight:
            weight_grad = conv2d_weight(x, weight.shape, grad, padding=padding)
        return x_grad, weight_grad
