"""One vector for a whole map: the mean of its positions, weighted by a softmax."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .layout import is_channels_last
from .precision import disable_autocast, upcast
from .sums import position_dots, weighted_sums


def context_pool(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax-weighted mean over positions; logits are a 1x1 convolution of x.

    Source: GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, ICCVW 2019,
    arXiv 1904.11492, eq. 3.

    Args:
        x: (N, C, H, W).
        weight, bias: (1, C, 1, 1), (1), of the convolution.

    Returns:
        the context (N, C) in the dtype of x, and the weights (N, 1, H, W), which sum to 1, in fp32
        or wider.
    """
    with disable_autocast(x):
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        if is_compiling():
            weights = _position_weights(x, weight, bias)
            return weighted_sums(x, weights.to(x.dtype)), weights
        return _ContextPool.apply(x, weight, bias)


def _position_weights(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    logits = position_dots(x, weight, bias)
    return upcast(logits).flatten(2).softmax(-1).view_as(logits)


class _ContextPool(torch.autograd.Function):
    """`context_pool`, whose gradient for x is one product of matrices, of rank 2.

    With context c and weights a, and logits w . x[p]: dx[p] = a[p] dc + w dl[p], where
    dl[p] = a[p] (dc . x[p] - dc . c), as dc . c is the weighted mean of dc . x[p].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        weights = _position_weights(x, weight, bias)
        context = _each(x.flatten(2), weights.flatten(1).to(x.dtype))
        ctx.save_for_backward(x, weight, weights)
        ctx.set_materialize_grads(False)
        return context, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, context_grad: Tensor | None, weights_grad: Tensor | None):
        x, weight, weights = ctx.saved_tensors
        if context_grad is None:
            context_grad = x.new_zeros(x.shape[:2])
        last = is_channels_last(x)
        with disable_autocast(x):
            maps, a = x.flatten(2), weights.flatten(1)  # (N, C, P), (N, P)
            a_grad = upcast(_each(maps.mT, context_grad))
            if weights_grad is not None:
                a_grad = a_grad + weights_grad.flatten(1)
            logits_grad = a * (a_grad - (a * a_grad).sum(1, keepdim=True))
            factors = logits_grad.to(x.dtype)
            weight_grad = _each(maps, factors).sum(0).view_as(weight)
            x_grad = None
            if ctx.needs_input_grad[0]:
                columns = torch.stack([context_grad, weight.flatten().expand_as(context_grad)], 2)
                rows = torch.stack([a.to(x.dtype), factors], 1)
                if last:
                    x_grad = (rows.mT @ columns.mT).mT.unflatten(2, x.shape[2:])
                else:
                    x_grad = (columns @ rows).unflatten(2, x.shape[2:])
        return x_grad, weight_grad, factors.sum().view(1)


def _each(matrices: Tensor, vectors: Tensor) -> Tensor:
    """(N, R, K), (N, K) -> (N, R). A batched product with one column is several times slower."""
    if len(matrices) == 0:
        return matrices.new_zeros(matrices.shape[:2])
    return torch.stack([torch.mv(m, v) for m, v in zip(matrices, vectors, strict=True)])
