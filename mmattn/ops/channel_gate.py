"""Maps scaled by one gate a channel that is computed from the map itself."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .precision import disable_autocast, upcast
from .sums import channel_factor

_BLOCK = 1 << 19  # bytes of a product, which is summed while it is in the cache


def scale_channels(
    x: Tensor, gate: Callable[[Tensor], Tensor], added: Tensor | None = None
) -> Tensor:
    """x * gate(x), or x * gate(x) + added, in training with fewer passes over x.

    The backward pass sums grad * x without a map of the products, and adds to grad * gate what
    comes through the gate as it is written.

    Args:
        x: (N, C, H, W).
        gate: x -> (N, C) or (N, C, 1, 1), in the dtype of x. It may depend on parameters.
        added: (N, C, H, W), or None for 0.

    Returns:
        (N, C, H, W).
    """
    if is_compiling() or not torch.is_grad_enabled():
        return _scale(x, channel_factor(gate(x), x), added)
    exchange: list[Tensor] = []
    source = x
    if x.requires_grad:
        source, x = _Fork.apply(x, exchange)
    return _Scale.apply(x, channel_factor(gate(source), x), added, exchange)


def _scale(x: Tensor, gate: Tensor, added: Tensor | None) -> Tensor:
    return x * gate if added is None else torch.addcmul(added, x, gate)


class _Fork(torch.autograd.Function):
    """x for the gate, and x for `_Scale`, which returns for it the gradient of its result.

    So their gradients meet here, where grad * gate and the rest are one pass. `_Scale` runs before
    in every backward pass that reaches x through it, and leaves the gate in `exchange`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: list[Tensor]) -> tuple[Tensor, Tensor]:
        ctx.exchange = exchange
        ctx.set_materialize_grads(False)
        return x.detach(), x.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, through_gate: Tensor | None, grad: Tensor | None):
        if grad is None:
            return through_gate, None
        (gate,) = ctx.exchange
        return grad * gate if through_gate is None else _affine(grad, gate, through_gate), None


class _Scale(torch.autograd.Function):
    """`_scale`, whose gradient for x is left to `_Fork`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor, added: Tensor | None, exchange: list[Tensor]
    ) -> Tensor:
        ctx.save_for_backward(x, gate)
        ctx.exchange = exchange
        return _scale(x, gate, added)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate = ctx.saved_tensors
        ctx.exchange[:] = [gate.detach()]  # its graph leads to `_Fork`, which holds the list
        needs_x, needs_gate, needs_added, _ = ctx.needs_input_grad
        gate_grad = channel_dots(grad, x).to(gate.dtype) if needs_gate else None
        return grad if needs_x else None, gate_grad, grad if needs_added else None, None


def channel_dots(a: Tensor, b: Tensor) -> Tensor:
    """Sums over positions of a * b: (N, C, H, W) twice -> (N, C, 1, 1), in fp32 or wider."""
    with disable_autocast(a):
        last = torch.channels_last
        if a.device.type == 'cpu' and a.is_contiguous() and b.is_contiguous():
            pairs = _blocks(a.flatten(2).flatten(0, 1), b.flatten(2).flatten(0, 1))
            dots = torch.cat([(upcast(s) * t).sum(1) for s, t in pairs])
        elif a.device.type == 'cpu' and all(t.is_contiguous(memory_format=last) for t in (a, b)):
            images = zip(a.flatten(2).mT, b.flatten(2).mT, strict=True)  # (H W, C)
            dots = torch.stack(
                [sum((upcast(s) * t).sum(0) for s, t in _blocks(*pair)) for pair in images]
            )
        else:
            dots = (upcast(a) * b).sum((2, 3))
    return dots.view(*a.shape[:2], 1, 1)


def _blocks(a: Tensor, b: Tensor):
    """Pairs of the same rows of two matrices, some at a time."""
    rows = max(_BLOCK // max(a.shape[1] * upcast(a[:0]).element_size(), 1), 1)
    return zip(a.split(rows), b.split(rows), strict=True)


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * scale + shift; scale is (N, C, 1, 1), shift the same or a map."""
    is_constant = not any(shift.stride()[2:])
    if not (is_constant and x.device.type == 'cpu' and x.is_contiguous() and upcast(x) is x):
        return torch.addcmul(shift, x, scale)
    # torch multiplies and adds in one loop with vectors here alone
    vectors = scale.flatten(), shift[:, :, 0, 0].flatten()
    zeros, ones = torch.zeros_like(vectors[0]), torch.ones_like(vectors[0])
    maps = x.view(1, -1, *x.shape[2:])
    return torch.native_batch_norm(maps, *vectors, zeros, ones, False, 0.0, 0.0)[0].view_as(x)
