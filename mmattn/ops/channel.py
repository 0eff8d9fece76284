"""Attention between channels, pooling of maps to one value a channel, and channel shuffle."""

from typing import Any

import torch
from torch import Tensor

from .precision import widen, without_autocast

_SMALLEST_SUM = 1e-24  # of squares; keeps the derivative of the root finite at an all-zero channel


def channel_attention(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every channel as a weighted sum of all, the least similar weighing most.

    Source: Dual Attention Network for Scene Segmentation, CVPR 2019, arXiv 1809.02983, eq. 3-4,
    in the form of the authors' code, E = X X^T, A = softmax(max E - E) = softmax(-E).

    Args:
        x: (N, C, P).

    Returns:
        (A X, A): (N, C, P) in the dtype of x, and (N, C, C), rows sum to 1, in fp32 or wider.
    """
    with without_autocast(x):
        weights = (-_Gram.apply(widen(x))).softmax(-1)
        return weights.to(x.dtype) @ x, weights


class _Gram(torch.autograd.Function):
    """X X^T, whose gradient is one product where autograd would take two."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x @ x.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (grad + grad.mT) @ x


def global_pool(x: Tensor, kind: str) -> Tensor:
    """One value a channel: (N, C, H, W) -> (N, C).

    Args:
        x: the maps.
        kind: 'avg' mean; 'max' maximum; 'lp' root of the sum of squares; 'lse' log of the sum of
            exponentials. The last two are computed and returned in fp32 or wider: the root may
            exceed what fp16 holds.

    Raises:
        ValueError: another kind.
    """
    if kind == 'avg':
        return x.mean((2, 3))
    if kind == 'max':
        return x.flatten(2).max(-1).values  # its gradient goes to one pixel, as max_pool2d's does
    if kind == 'lp':
        return widen(x).square().sum((2, 3)).clamp(min=_SMALLEST_SUM).sqrt()
    if kind == 'lse':
        return widen(x).flatten(2).logsumexp(-1)
    raise ValueError(f"global_pool: {kind=}, allowed 'avg', 'max', 'lp', 'lse'")


def context_pool(x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the positions, weighted by a softmax over them.

    Source: GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, ICCVW 2019,
    arXiv 1904.11492, eq. 3.

    Args:
        x: (N, C, H, W).
        logits: (N, 1, H, W).

    Returns:
        the context (N, C) in the dtype of x, and the weights (N, 1, H, W), which sum to 1.
    """
    weights = widen(logits).flatten(2).softmax(-1)  # (N, 1, P)
    with without_autocast(x):
        context = x.flatten(2) @ weights.to(x.dtype).mT  # (N, C, 1)
    return context.flatten(1), weights.reshape(logits.shape)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal the channels of `groups` equal parts out in turn: (N, C, ...) -> (N, C, ...).

    With 2 groups and C = 8 the order becomes 0 4 1 5 2 6 3 7. Shuffling with C / groups afterwards
    restores it. Source: ShuffleNet, CVPR 2018, arXiv 1707.01083, fig. 1.
    """
    parts = x.unflatten(1, (groups, x.shape[1] // groups))
    return parts.transpose(1, 2).flatten(1, 2)


def group_similarity(parts: Tensor, eps: float) -> Tensor:
    """How much each position resembles the mean of its channel group, standardised over positions.

    Source: Spatial Group-wise Enhance, arXiv 1905.09646, eq. 2-4, with the unbiased deviation and
    eps added to it, as in the authors' code. On a map of one pixel the result is 0.

    Args:
        parts: (N, G, C / G, P), the groups of channels.
        eps: added to the deviation, in units of x squared.

    Returns:
        (N, G, P) in fp32 or wider.
    """
    with without_autocast(parts):
        parts = widen(parts)
        t = (parts.mean(-1, keepdim=True).mT @ parts).squeeze(2)  # (N, G, P)
        t = t - t.mean(-1, keepdim=True)
        if t.shape[-1] > 1:  # else t is 0 and there is no deviation
            t = t / (t.std(-1, keepdim=True) + eps)
        return t
