"""Memory formats of maps: contiguous or channels_last.

Products over channels are fastest in channels_last; the maps of a network are in either format.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .precision import disable_autocast, to_autocast_dtype

_PAGE = 4096  # bytes
_POSITIONS = 256  # of a map in channels_last that are copied at a time


def is_channels_last(x: Tensor) -> bool:
    """Whether x (N, C, H, W) is in channels_last and not contiguous, too."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def channels_last(x: Tensor) -> Tensor:
    """x (N, C, H, W) in channels_last, copied only if it is not."""
    if is_compiling() or x.is_contiguous(memory_format=torch.channels_last):
        return x.contiguous(memory_format=torch.channels_last)
    return _Relayout.apply(x, True)


def to_contiguous(x: Tensor) -> Tensor:
    """x (N, C, H, W) contiguous, copied only if it is not; not differentiable."""
    return x if x.is_contiguous() else _copy(x, False)


def match_memory_format(y: Tensor, x: Tensor) -> Tensor:
    """y contiguous or channels_last, as x is, both (N, C, H, W); copied only if it is not.

    Adding two maps of one format is several times faster than adding two of different formats.
    """
    if is_channels_last(x):
        return channels_last(y)
    if is_compiling() or y.is_contiguous():
        return y.contiguous()
    return _Relayout.apply(y, False)


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, last: bool = True) -> Tensor:
    """A 1x1 convolution: (N, C, H, W), (D, C), (D) -> (N, D, H, W).

    x may be in either format, and so may the result: in channels_last, or contiguous if not
    `last`. A matrix product is faster than a convolution.
    """
    x, weight, bias = (t if t is None else to_autocast_dtype(t) for t in (x, weight, bias))
    with disable_autocast(x):
        if is_compiling():
            factors, bias = _factors(x, weight, bias, last)
            y = torch.bmm(*factors) if bias is None else torch.baddbmm(bias, *factors)
            return (y.mT if last else y).unflatten(2, x.shape[2:])
        return _Project.apply(x, weight, bias, last)


def _factors(
    x: Tensor, weight: Tensor, bias: Tensor | None, last: bool
) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """The matrices whose product is (N, H W, D), or (N, D, H W) if not `last`, and the bias."""
    if last:
        return (x.flatten(2).mT, weight.mT.expand(x.shape[0], -1, -1)), bias
    factors = weight.expand(x.shape[0], -1, -1), x.flatten(2)
    return factors, None if bias is None else bias[:, None]


def project_by_product(x: Tensor, weight: Tensor, bias: Tensor | None, last: bool) -> Tensor:
    """`project` without autograd, into a tensor that is no view, so it may be changed in place."""
    y = empty_map((x.shape[0], len(weight), *x.shape[2:]), x, last)
    factors, bias = _factors(x, weight, bias, last)
    out = y.flatten(2).mT if last else y.flatten(2)
    if bias is None:
        torch.bmm(*factors, out=out)
    else:
        torch.baddbmm(bias, *factors, out=out)
    return y


class _Project(torch.autograd.Function):
    """`project_by_product`, whose gradient is in the format of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, last: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        return project_by_product(x, weight, bias, last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, _, needs_bias, _ = ctx.needs_input_grad
        return *project_grads(x, weight, grad.flatten(2).mT, needs_x, needs_bias), None


def project_grads(
    x: Tensor, weight: Tensor, grad: Tensor, needs_x: bool, needs_bias: bool
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Gradients of `project` for x, weight and bias; that of x is in its format.

    Args:
        x, weight: (N, C, H, W), (D, C).
        grad: (N, H W, D), of the result.
        needs_x, needs_bias: whether these are computed; else they are None.
    """
    weight_grad = project_weight_grad(x, grad)
    last = x.is_contiguous(memory_format=torch.channels_last)
    x_grad = project_x_grad(grad, weight, x.shape[2:], last) if needs_x else None
    return x_grad, weight_grad, grad.sum((0, 1)) if needs_bias else None


def project_weight_grad(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient of `project` for the weight: (N, C, H, W), of the result (N, H W, D) -> (D, C)."""
    weight_grad = grad.new_zeros(grad.shape[2], x.shape[1])
    for image, image_grad in zip(x.flatten(2), grad, strict=True):
        weight_grad.addmm_(image_grad.mT, image.mT)
    return weight_grad


def project_x_grad(grad: Tensor, weight: Tensor, size: torch.Size, last: bool) -> Tensor:
    """Gradient of `project` for x, (N, C, H, W) in channels_last, or contiguous if not `last`.

    Args:
        grad: (N, H W, D), of the result.
        weight: (D, C).
        size: H and W.
        last: memory format of the gradient.
    """
    x_grad = empty_map((len(grad), weight.shape[1], *size), grad, last)
    for out, image_grad in zip(x_grad.flatten(2), grad, strict=True):
        torch.mm(weight.mT, image_grad.mT, out=out)
    return x_grad


class _Relayout(torch.autograd.Function):
    """A copy in channels_last or contiguous; the gradient is in the format of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, last: bool) -> Tensor:
        ctx.last = x.is_contiguous(memory_format=torch.channels_last)
        return _copy(x, last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _copy(grad, ctx.last), None


def _copy(x: Tensor, last: bool) -> Tensor:
    """x in channels_last or contiguous; on CPUs by parts of matrices where that is faster."""
    form = torch.channels_last if last else torch.contiguous_format
    from_other = x.is_contiguous() if last else x.is_contiguous(memory_format=torch.channels_last)
    one_thread = torch.get_num_threads() == 1
    as_torch = last and not (one_thread and _page_aligned(x))
    if x.device.type != 'cpu' or not from_other or as_torch:
        return x.contiguous(memory_format=form)
    out = empty_map(x.shape, x, last)
    for source, target in zip(x.flatten(2), out.flatten(2), strict=True):
        if one_thread:  # torch transposes matrices by tiles, if the target is contiguous
            source, target = (source.mT, target.mT) if last else (source, target)
            target.copy_(source)
            continue
        parts = zip(source.split(_POSITIONS, 1), target.split(_POSITIONS, 1), strict=True)
        for source_part, target_part in parts:  # tiles are of one thread, copies of all
            target_part.copy_(source_part)
    return out


def empty_map(shape: Sequence[int], like: Tensor, last: bool) -> Tensor:
    form = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=form)


def _page_aligned(x: Tensor) -> bool:
    """Whether neighbours are whole pages apart, which share few cache lines, as at 64x128."""
    return any(n * x.element_size() % _PAGE == 0 for n in (x.shape[1], x.shape[2:].numel()))
