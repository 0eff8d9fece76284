"""Depthwise convolutions with large or dilated kernels."""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmattn.torch_compat import is_compiling

from .layout import channels_last, match_memory_format
from .precision import upcast

_PADDING = 6  # columns; with more of it, oneDNN takes several times longer
_VALUES = 1 << 19  # of a product at once, so that it stays in the cache


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int] = (1, 1)
) -> Tensor:
    """A depthwise convolution that keeps the size of the map.

    On CPUs in channels_last, several times faster than torch's: that is slow where columns are
    dilated, and in the gradient of the weight.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, height, width), both odd.
        bias: (C) or None.
        dilation: vertical and horizontal.

    Returns:
        (N, C, H, W).
    """
    if is_compiling() or x.device.type != 'cpu' or upcast(x) is not x or 0 in x.shape:
        return _conv(x, weight, bias, dilation)
    return _DepthwiseConv.apply(x, weight, bias, dilation)


class _DepthwiseConv(torch.autograd.Function):
    """`depthwise_conv` in channels_last; saves x as it is, and its gradient is in that format."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return _conv_channels_last(channels_last(x), weight, bias, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = channels_last(grad)
        x_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = _weight_grad(channels_last(x), grad, weight, ctx.dilation)
        if ctx.needs_input_grad[0]:
            x_grad = _conv_channels_last(grad, weight.flip(2, 3), None, ctx.dilation)
            x_grad = match_memory_format(x_grad, x)
        if ctx.needs_input_grad[2]:
            bias_grad = grad.sum((0, 2, 3))
        return x_grad, weight_grad, bias_grad, None


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int]) -> Tensor:
    # int: torch.jit.trace of torch 2.4 takes a size for a tensor
    padding = tuple(d * (int(k) // 2) for d, k in zip(dilation, weight.shape[2:], strict=True))
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=x.shape[1])


def _conv_channels_last(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int]
) -> Tensor:
    """`_conv` in channels_last, by convolutions of little horizontal padding."""
    (rows, columns), (height, width) = dilation, weight.shape[2:]
    if columns * (width // 2) <= _PADDING:
        return _conv(x, weight, bias, dilation)
    if height == 1:  # each row by itself, turned upright
        upright = x.permute(0, 2, 3, 1).reshape(-1, x.shape[3], 1, x.shape[1]).permute(0, 3, 1, 2)
        y = _conv(upright, weight.mT, bias, (columns, 1)).permute(0, 2, 3, 1)  # (N H, W, 1, C)
        return y.reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
    y = torch.empty_like(x)
    for start in range(min(columns, x.shape[3])):  # every d-th column by itself, not dilated
        every = slice(start, None, columns)
        y[..., every] = _conv(channels_last(x[..., every]), weight, bias, (rows, 1))
    return y


def _weight_grad(x: Tensor, grad: Tensor, weight: Tensor, dilation: tuple[int, int]) -> Tensor:
    """The sum of grad times the shifted x over all positions, for each tap: as weight."""
    height, width = x.shape[2:]
    found = weight.new_zeros(*weight.shape[2:], len(weight))  # (kernel height, width, C)
    images = max(1, _VALUES // x[0].numel())
    rows = max(1, _VALUES // x[0, :, 0].numel())
    buffer = x.new_empty(min(images, len(x)) * min(rows, height) * x[0, :, 0].numel())
    maps = (t.permute(0, 2, 3, 1).split(images) for t in (x, grad))  # (images, H, W, C)
    for some, some_grad in zip(*maps, strict=True):
        for start in range(0, height, rows):
            for tap in itertools.product(*map(range, weight.shape[2:])):
                down, right = (
                    d * (i - k // 2)
                    for d, i, k in zip(dilation, tap, weight.shape[2:], strict=True)
                )
                top, bottom = max(start, -down), min(start + rows, height, height - down)
                left, end = max(0, -right), min(width, width - right)
                if top >= bottom or left >= end:
                    continue  # it reads padding alone
                a = some_grad[:, top:bottom, left:end]
                b = some[:, top + down : bottom + down, left + right : end + right]
                product = torch.mul(a, b, out=buffer[: a.numel()].view(a.shape))
                found[tap] += product.flatten(0, 2).sum(0)
    return found.permute(2, 0, 1)[:, None]
