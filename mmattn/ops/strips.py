"""Maps pooled along an axis, and maps scaled by factors that are constant along an axis.

A strip is a map with one axis of size 1: (N, C, H, 1) for rows, (N, C, 1, W) for columns,
(N, 1, H, W). The full maps between strips and result are computed again in the backward pass, and
reductions run in the order in which the map is stored, contiguous or channels_last: torch takes
20 times longer to reduce a channels_last map along H or W.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import HAS_WRONG_MAX_GRADIENT, is_compiling

from .layout import is_channels_last
from .precision import disable_autocast, upcast


def strip_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means over W and over H, in fp32 or wider: (N, C, H, W) -> (N, C, H, 1), (N, C, 1, W)."""
    if is_compiling():
        return upcast(x.mean(3, keepdim=True)), upcast(x.mean(2, keepdim=True))
    return _Pool.apply(x, (3, 2), False)


def max_mean_strips(x: Tensor, axes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Maximum and mean along each axis; the gradient of a maximum goes to the first of equals.

    Args:
        x: (N, C, H, W).
        axes: some of 1, 2, 3.

    Returns:
        (maximum, mean) for each axis, x with that axis of size 1, in fp32 or wider.
    """
    if is_compiling():
        largest = _amax if HAS_WRONG_MAX_GRADIENT else _max
        maxima = [upcast(largest(x, axis)) for axis in axes]
        return list(zip(maxima, [upcast(x.mean(axis, keepdim=True)) for axis in axes], strict=True))
    strips = _Pool.apply(x, tuple(axes), True)
    return list(zip(strips[len(axes) :], strips[: len(axes)], strict=True))


def _max(x: Tensor, axis: int) -> Tensor:
    return x.max(axis, keepdim=True).values


def _amax(x: Tensor, axis: int) -> Tensor:
    """Equal maxima share the gradient."""
    return x.amax(axis, keepdim=True)


def scale_by_product(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x * (rows * columns).

    Args:
        x: (N, C, H, W).
        rows: (N, C, H, 1), in fp32 or wider.
        columns: (N, C, 1, W), in fp32 or wider.

    Returns:
        (N, C, H, W) in the dtype and memory format of x.
    """
    return _scale(x, 'product', 1, rows, columns)


def scale_by_sum(x: Tensor, *strips: Tensor) -> Tensor:
    """x * (sum of the strips); two or more, else as for `scale_by_product`."""
    return _scale(x, 'sum', 1, *strips)


def scale_by_sigmoid(x: Tensor, rows: Tensor, columns: Tensor, height: float = 1) -> Tensor:
    """x * (height * sigmoid(rows + columns)), with arguments as for `scale_by_product`."""
    return _scale(x, 'sigmoid', height, rows, columns)


def _scale(x: Tensor, rule: str, height: float, *strips: Tensor) -> Tensor:
    if not is_compiling():
        return _Scale.apply(x, rule, height, *strips)
    with disable_autocast(x):
        return x * _factor(rule, height, strips).to(x.dtype)


def _factor(rule: str, height: float, strips: Sequence[Tensor], out: Tensor | None = None):
    """The factor of x, (N, C, H, W)."""
    first, second, *others = strips
    if rule == 'product':
        return torch.mul(first, second, out=out)
    factor = torch.add(first, second, out=out)
    for strip in others:
        factor = torch.add(factor, strip, out=out)
    if rule == 'sigmoid':
        factor = torch.sigmoid(factor, out=out)
        factor = factor if height == 1 else torch.mul(factor, height, out=out)
    return factor


def _times(
    x: Tensor, rule: str, height: float, strips: Sequence[Tensor], buffer: Tensor | None = None
) -> Tensor:
    """x times the factor, in the buffer of the dtype of the strips if there is one."""
    if rule == 'product' and strips[0].dtype == x.dtype:
        return torch.mul(x, strips[0], out=buffer).mul_(strips[1])
    factor = _factor(rule, height, strips, buffer)
    return factor.mul_(x) if factor.dtype == x.dtype else factor.to(x.dtype).mul_(x)


class _Scale(torch.autograd.Function):
    """x times a factor made of strips, of which autograd saves x and the strips alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: str, height: float, *strips: Tensor) -> Tensor:
        ctx.save_for_backward(x, *strips)
        ctx.rule, ctx.height = rule, height
        last = is_channels_last(x)
        x, *strips = (_stored(t, last) for t in (x, *strips))
        return _logical(_times(x, rule, height, [t.contiguous() for t in strips]), last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *strips = ctx.saved_tensors
        last = is_channels_last(x)
        x, grad, *strips = (_stored(t, last) for t in (x, grad, *strips))
        strips = [t.contiguous() for t in strips]
        product = x.to(strips[0].dtype) * grad  # the gradient of the factor
        if ctx.rule == 'product':
            first = _sum_to(product * strips[1], strips[0])
            grads = [first, _sum_to(product.mul_(strips[0]), strips[1])]
        else:
            if ctx.rule == 'sigmoid':  # height * s (1 - s), with the factor height * s
                factor = _factor(ctx.rule, ctx.height, strips)
                product.mul_(factor).mul_(factor.div_(-ctx.height).add_(1))
            grads = [_sum_to(product, strip) for strip in strips]
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = _logical(_times(grad, ctx.rule, ctx.height, strips, product), last)
        return x_grad, None, None, *(_logical(t, last) for t in grads)


class _Pool(torch.autograd.Function):
    """Means along axes, then optionally maxima; autograd saves x and the maxima, if any."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: tuple[int, ...], with_max: bool) -> tuple[Tensor, ...]:
        ctx.size, ctx.dtype, ctx.last = x.shape, x.dtype, is_channels_last(x)
        ctx.axes, ctx.with_max = axes, with_max
        stored = _stored(x, ctx.last)
        places = [_place(axis, ctx.last) for axis in axes]
        strips = [stored.mean(axis, keepdim=True) for axis in places]
        if with_max:
            maxima = [stored.amax(axis, keepdim=True) for axis in places]
            ctx.save_for_backward(x, *maxima)
            strips += maxima
        return tuple(_logical(upcast(strip), ctx.last) for strip in strips)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grads = [_stored(t, ctx.last).contiguous() for t in grads]
        means = [g / ctx.size[axis] for g, axis in zip(grads, ctx.axes, strict=False)]
        x_grad = means[0] + means[1]
        for mean in means[2:]:
            x_grad += mean
        if ctx.with_max:
            x, *maxima = ctx.saved_tensors
            x, buffer = _stored(x, ctx.last), torch.empty_like(x_grad)
            of_maxima = zip(ctx.axes, maxima, grads[len(ctx.axes) :], strict=True)
            for axis, maximum, grad in of_maxima:
                axis = _place(axis, ctx.last)
                x_grad.scatter_add_(axis, _first_index(x, maximum, axis, buffer), grad)
        return _logical(x_grad.to(ctx.dtype), ctx.last), None, None


def _first_index(x: Tensor, maximum: Tensor, axis: int, buffer: Tensor) -> Tensor:
    """Where along the axis the maximum is met first; several times faster than argmax."""
    length = x.shape[axis]
    countdown = torch.arange(length, 0, -1, dtype=buffer.dtype, device=x.device)
    countdown = countdown.view(-1, *[1] * (x.dim() - 1 - axis))
    torch.eq(x, maximum, out=buffer)
    index = length - buffer.mul_(countdown).amax(axis, keepdim=True).long()
    return index.clamp_(max=length - 1)  # nothing equals NaN


def _sum_to(x: Tensor, strip: Tensor) -> Tensor:
    """The sum over the axes along which a strip is constant."""
    return x.sum([axis for axis in (1, 2, 3) if strip.shape[axis] == 1], keepdim=True)


def _stored(x: Tensor, last: bool) -> Tensor:
    """The axes of x in the order of storage, (N, H, W, C) for channels_last."""
    return x.permute(0, 2, 3, 1) if last else x


def _logical(x: Tensor, last: bool) -> Tensor:
    """Undo `_stored`."""
    return x.permute(0, 3, 1, 2) if last else x


def _place(axis: int, last: bool) -> int:
    """Where an axis of (N, C, H, W) is in the order of storage."""
    return (axis - 2) % 3 + 1 if last else axis
