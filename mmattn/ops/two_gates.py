"""Maps scaled by two gates, one a channel and one a position, without a map of gates."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .layout import is_channels_last
from .precision import disable_autocast, upcast
from .sums import as_nhwc, channel_factor, sums_by_rows

_BLOCK = 1 << 18  # bytes of a map at a time on a CPU; the intermediates fit into the cache


def max_of_gates(x: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
    """max(x * channel, x * spatial), for which autograd saves x and the gates alone.

    As with `torch.max`, equal products share the gradient.

    Args:
        x: (N, C, H, W).
        channel: (N, C, 1, 1), in the dtype of x.
        spatial: (N, 1, H, W), in the dtype of x.

    Returns:
        (N, C, H, W) in the memory format of x.
    """
    if is_compiling():
        products = x * channel_factor(channel, x), x * spatial
        if sums_by_rows(x):  # the gradient of a maximum is contiguous
            return torch.max(*map(as_nhwc, products)).permute(0, 3, 1, 2)
        return torch.max(*products)
    return _by_rows(_MaxOfGates.apply, x, channel, spatial)


def scale_by_fused_sigmoid(
    x: Tensor, channel: Tensor, spatial: Tensor, offset: float, multiply: bool = False
) -> Tensor:
    """x * (offset + sigmoid(z)), for which autograd saves x and the logits alone.

    Args:
        x: (N, C, H, W).
        channel: (N, C, 1, 1), in the dtype of x.
        spatial: (N, 1, H, W), in the dtype of x.
        offset: added to the sigmoid.
        multiply: whether z = channel * spatial, else channel + spatial.

    Returns:
        (N, C, H, W) in the memory format of x.
    """
    if is_compiling():
        channel = channel_factor(channel, x)
        return x * (offset + _fuse(channel, spatial, multiply).sigmoid())
    return _by_rows(_FusedSigmoid.apply, x, channel, spatial, offset, multiply)


def _fuse(first: Tensor, second: Tensor, multiply: bool) -> Tensor:
    return first * second if multiply else first + second


def _by_rows(
    function: Callable[..., Tensor], x: Tensor, channel: Tensor, spatial: Tensor, *options: Any
) -> Tensor:
    """function(x, rows, columns, *options) of matrices (N, R, K) in the order of storage."""
    last = is_channels_last(x)
    stored = [t.flatten(2).mT if last else t.flatten(2) for t in (x, channel, spatial)]
    rows, columns = stored[2:0:-1] if last else stored[1:]
    y = function(stored[0], rows, columns, *options)
    return (y.mT if last else y).unflatten(2, x.shape[2:])


class _MaxOfGates(torch.autograd.Function):
    """max(x * rows, x * columns), of x (N, R, K) with rows (N, R, 1) and columns (N, 1, K)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(x, rows, columns)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part, row, column, out in _parts(x, rows, columns, y):
            torch.mul(part, row, out=out)
            torch.maximum(out, part * column, out=out)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, rows, columns = ctx.saved_tensors
        needs_x, *needs = ctx.needs_input_grad
        x_grad = torch.empty_like(x, memory_format=torch.contiguous_format)
        row_grad, column_grad = (torch.zeros_like(upcast(t)) for t in (rows, columns))
        with disable_autocast(x):
            maps = x, rows, columns, grad, x_grad, row_grad, column_grad
            for part, row, column, g, out, of_rows, of_columns in _parts(*maps):
                # 1 where the product with the row's gate is larger, 1/2 where both are equal
                share = (part * row).sub_(part * column).sign_().add_(1).mul_(0.5)
                if any(needs):
                    product = upcast(part) * g
                    row_product = product * share
                    torch.sum(row_product, -1, keepdim=True, out=of_rows)
                    of_columns += product.sub_(row_product).sum(-2, keepdim=True)
                if needs_x:
                    torch.mul(g, column, out=out)
                    out.addcmul_((g * row).sub_(out), share)
        return x_grad if needs_x else None, row_grad.to(rows.dtype), column_grad.to(columns.dtype)


class _FusedSigmoid(torch.autograd.Function):
    """x * (offset + sigmoid(z)), z the sum or the product of rows and columns, as above."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: Tensor, columns: Tensor, offset: float, multiply: bool
    ) -> Tensor:
        ctx.save_for_backward(x, rows, columns)
        ctx.offset, ctx.multiply = offset, multiply
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part, row, column, out in _parts(x, rows, columns, y):
            gate = _fuse(row, column, multiply).sigmoid_().add_(offset)
            torch.mul(part, gate, out=out)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, rows, columns = ctx.saved_tensors
        needs_x, *needs = ctx.needs_input_grad[:3]
        x_grad = torch.empty_like(x, memory_format=torch.contiguous_format)
        row_grad, column_grad = (torch.zeros_like(upcast(t)) for t in (rows, columns))
        with disable_autocast(x):
            maps = x, rows, columns, grad, x_grad, row_grad, column_grad
            for part, row, column, g, out, of_rows, of_columns in _parts(*maps):
                gate = _fuse(row, column, ctx.multiply).sigmoid_()
                if any(needs):
                    product = torch.ops.aten.sigmoid_backward(upcast(part) * g, upcast(gate))
                    for_rows = product * column if ctx.multiply else product
                    torch.sum(for_rows, -1, keepdim=True, out=of_rows)
                    for_columns = product.mul_(row) if ctx.multiply else product
                    of_columns += for_columns.sum(-2, keepdim=True)
                if needs_x:
                    torch.mul(g, gate.add_(ctx.offset), out=out)
        grads = row_grad.to(rows.dtype), column_grad.to(columns.dtype)
        return x_grad if needs_x else None, *grads, None, None


def _parts(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of x and of others, (N, R or 1, ...): on a CPU some rows of one image at a time."""
    if x.device.type != 'cpu':
        yield x, *others
        return
    count = max(_BLOCK // max(x.shape[2] * x.element_size(), 1), 1)
    for images in zip(x, *others, strict=True):
        for k in range(0, x.shape[1], count):
            yield tuple(t[k : k + count] if len(t) == x.shape[1] else t for t in images)
