"""Channel attention: every channel is a weighted sum of all, added to the map.

Source: Dual Attention Network for Scene Segmentation, CVPR 2019, arXiv 1809.02983, eq. 3-4.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmattn.torch_compat import is_compiling, is_exporting

from .precision import disable_autocast, upcast

_BLOCK = 128  # channels of a block of the Gram matrix


def channel_attention(x: Tensor, gamma: Tensor) -> Tensor:
    """gamma * A X + X, A the weights of `channel_attention_weights`.

    The factor is multiplied into A, and the addition is part of the product. Saves x and A for
    backward.

    Args:
        x: (N, C, P).
        gamma: scalar, ().

    Returns:
        (N, C, P) in the dtype of x and its order of axes in memory.
    """
    with disable_autocast(x):
        if is_exporting():  # 2.4 cannot export autograd functions
            scaled = gamma * channel_attention_weights(x)
            return torch.baddbmm(x, scaled.to(x.dtype), x)
        return _ChannelAttention.apply(x, gamma)


def channel_attention_weights(x: Tensor) -> Tensor:
    """Weights of all channels for each channel; the least similar weigh most.

    In the form of the authors' code, E = X X^T, A = softmax(max E - E) = softmax(-E).

    Args:
        x: (N, C, P).

    Returns:
        A, (N, C, C), rows sum to 1, in fp32 or wider.
    """
    with disable_autocast(x):
        return (-_gram(upcast(x))).softmax(-1)


class _ChannelAttention(torch.autograd.Function):
    """`channel_attention`, whose gradient takes three matrix products, of five in the formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor) -> Tensor:
        weights = channel_attention_weights(x)
        ctx.save_for_backward(x, gamma, weights)
        return _add_product(x, _flush(gamma * weights).to(x.dtype), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, gamma, weights = ctx.saved_tensors
        scaled_grad = upcast(torch.bmm(grad, x.mT))  # of gamma * A
        product = scaled_grad * weights
        # of E; X X^T passes it on to both of its factors
        gram_grad = gamma * (weights * product.sum(-1, keepdim=True) - product)
        by_values = _add_product(grad, _flush(gamma * weights).to(x.dtype).mT, grad, like=x)
        x_grad = _add_product(upcast(by_values), _flush(gram_grad + gram_grad.mT), upcast(x))
        return x_grad.to(x.dtype), product.sum().to(gamma.dtype)


def _gram(x: Tensor) -> Tensor:
    """X X^T, (N, C, P) -> (N, C, C); on a CPU its upper blocks are computed and mirrored."""
    channels = x.shape[1]
    if is_compiling() or not x.is_cpu or channels <= _BLOCK:
        return x @ x.mT
    gram = x.new_empty(len(x), channels, channels)
    for image, out in zip(x, gram, strict=True):
        for first in range(0, channels, _BLOCK):
            rows = slice(first, first + _BLOCK)
            torch.mm(image[rows], image[first:].mT, out=out[rows, first:])
            out[rows, :first] = out[:first, rows].mT
    return gram


def _flush(x: Tensor) -> Tensor:
    """x with 0 for subnormal numbers, whose products take many times as long on some CPUs."""
    return F.hardshrink(x, torch.finfo(x.dtype).tiny)


def _add_product(y: Tensor, matrix: Tensor, x: Tensor, like: Tensor | None = None) -> Tensor:
    """y + matrix @ x, (N, C, P), with the order of axes in memory of `like`, or of x."""
    if (x if like is None else like).mT.is_contiguous():
        return torch.baddbmm(y.mT, x.mT, matrix.mT).mT
    return torch.baddbmm(y, matrix, x)
