"""Gates of single values, from the energy that tells a value from the others of its channel."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .precision import disable_autocast, upcast

_PART = 1 << 20  # values at a time on a CPU; their intermediates fit into the cache


def simam_gate(x: Tensor, e_lambda: float) -> Tensor:
    """sigmoid(1 / e), e the least energy of a value in its channel; in [0.62, 1).

    Source: SimAM, ICML 2021, PMLR 139, eq. 5-6, with the unbiased variance of the authors' code:
    1 / e = (x - mean)^2 / (4 (variance + lambda)) + 1 / 2. On a map of one pixel it is 1 / 2.

    Args:
        x: (N, C, H, W).
        e_lambda: added to the variance, in units of x squared; above 0.

    Returns:
        (N, C, H, W) in fp32 or wider.
    """
    with disable_autocast(x):
        x = upcast(x)
        d = (x - x.mean((2, 3), keepdim=True)).square()
        return (d * _factor(d, e_lambda) + 0.5).sigmoid()


def simam(x: Tensor, e_lambda: float, rho: Tensor | None = None) -> Tensor:
    """x * g, or x + rho * (x * g - x), with the gates g of `simam_gate`.

    For backward it keeps x, and two numbers a channel.

    Args:
        x: (N, C, H, W).
        e_lambda: see `simam_gate`.
        rho: a scalar; None means 1.

    Returns:
        (N, C, H, W) in the dtype of x.
    """
    if not is_compiling():
        return _SimAM.apply(x, e_lambda, rho)
    gate = simam_gate(x, e_lambda)
    with disable_autocast(x):
        if rho is not None:
            gate = 1 + (gate - 1) * upcast(rho)
        return (upcast(x) * gate).to(x.dtype)


def _factor(d: Tensor, e_lambda: float) -> Tensor:
    """Squared distances to the mean -> 1 / (4 (variance + lambda)), (N, C, 1, 1)."""
    variance = d.sum((2, 3), keepdim=True) / max(d.shape[2] * d.shape[3] - 1, 1)
    return 0.25 / (variance + e_lambda)


class _SimAM(torch.autograd.Function):
    """`simam`. The gradient, with g the gate, r = x - mean and f = 1 / (4 (variance + lambda)):

    dx = dy (1 + rho (g - 1)) + w - mean(w), w = 2 f h r - 8 f^2 r sum(h r^2) / (H W - 1),
    h = dy x rho g (1 - g).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, e_lambda: float, rho: Tensor | None) -> Tensor:
        y = torch.empty_like(x)
        mean = upcast(x.new_empty(*x.shape[:2], 1, 1))
        factor = torch.empty_like(mean)
        with disable_autocast(x):
            for part, out, m, f in _parts(x, y, mean, factor):
                wide = upcast(part)
                torch.mean(wide, (2, 3), keepdim=True, out=m)
                d = _difference(wide, m, out).square_()
                f.copy_(_factor(d, e_lambda))
                gate = d.mul_(f).add_(0.5).sigmoid_()
                if rho is not None:
                    gate.sub_(1).mul_(rho).add_(1)
                torch.mul(wide, gate, out=out)
        ctx.save_for_backward(x, mean, factor, rho)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
        x, mean, factor, rho = ctx.saved_tensors
        x_grad = torch.empty_like(x)
        rho_grad = None if rho is None else torch.zeros_like(upcast(rho))
        others = max(x.shape[2] * x.shape[3] - 1, 1)
        with disable_autocast(x):
            for part, y_grad, out, m, f in _parts(x, grad, x_grad, mean, factor):
                wide, y_grad = upcast(part), upcast(y_grad)
                r = _difference(wide, m, out)
                gate = r.square().mul_(f).add_(0.5).sigmoid_()
                product = y_grad * wide
                h = torch.ops.aten.sigmoid_backward(product, gate)
                if rho is not None:
                    gate.sub_(1)
                    rho_grad += product.mul_(gate).sum()
                    gate.mul_(rho).add_(1)
                    h.mul_(rho)
                h.mul_(r)
                h_mean = h.mean((2, 3), keepdim=True)
                h_sum = torch.mul(h, r, out=product).sum((2, 3), keepdim=True)
                r.mul_(8 * f * f * h_sum / others).add_(2 * f * h_mean)
                torch.addcmul(h.mul_(2 * f).sub_(r), y_grad, gate, out=out)
        return x_grad, None, None if rho is None else rho_grad.to(rho.dtype)


def _difference(x: Tensor, mean: Tensor, out: Tensor) -> Tensor:
    """x - mean, in `out` if that is as wide."""
    return torch.sub(x, mean, out=out) if out.dtype == x.dtype else x - mean


def _parts(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same images of each; on a CPU so few that their intermediates stay in cache."""
    values = max(x.shape[1:].numel(), 1)
    images = max(_PART // values, 1) if x.device.type == 'cpu' else max(len(x), 1)
    return zip(*(t.split(images) for t in (x, *others)), strict=True)
