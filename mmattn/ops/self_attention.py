"""Softmax attention whose queries are its keys: logits are symmetric, and computed once for both.

x[p] . x[s] is the logit of s for the query p, and of p for the query s. So a tile of logits serves
two blocks of positions, and half of the products for logits and of those for their gradients is
left. A tile stays in the cache until it is used up. In the backward pass it is computed again, from
each query's highest logit and sum of exponentials, as in FlashAttention (NeurIPS 2022, arXiv
2205.14135, algorithm 4).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .precision import upcast

_TILE = 1 << 18  # logits of a tile for each thread, in whose cache a few of 1 MB in fp32 stay


class SelfAttention(torch.autograd.Function):
    """o[p] = sum_s softmax_s(scale x[p] . x[s]) v[s]: (N, E, P), (N, C, P) -> (N, C, P).

    Saves x, v, the result and two numbers for each position.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, scale: float) -> Tensor:
        out = v.new_empty(len(v), v.shape[2], v.shape[1])
        highest, total = upcast(x[:0]).new_empty(2, len(x), x.shape[2], 1)
        for n in range(len(x)):
            out[n], highest[n], total[n] = _attend(_rows(x[n]), _rows(v[n]), scale)
        ctx.save_for_backward(x, v, out, highest, total)
        ctx.scale = scale
        return out.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, v, out, highest, total = ctx.saved_tensors
        grads = [t.new_empty(t.mT.shape) for t in (x, v)]  # (N, P, channels)
        for n in range(len(x)):
            given = _rows(grad[n]) / total[n]  # so that weights need not be divided
            dots = _dots(given, upcast(out[n]))
            found = _gradients(_rows(x[n]), _rows(v[n]), given, dots, highest[n], ctx.scale)
            for target, result in zip(grads, found, strict=True):
                target[n] = result
        return *(t.mT for t in grads), None


def _rows(x: Tensor) -> Tensor:
    """(C, P) -> (P, C), contiguous, in fp32 or wider."""
    return upcast(x).mT.contiguous()


def _attend(x: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """(P, E), (P, C) -> (P, C), and of each query the highest logit and the sum of exponentials.

    Exponentials are relative to the highest logit; both are (P, 1).
    """
    out, total = v.new_zeros(v.shape), v.new_zeros(len(v), 1)
    highest = v.new_full((len(v), 1), -torch.inf)

    def add(queries: slice, logits: Tensor, keys: slice, weights: Tensor) -> None:
        """Add keys to the sums of queries; all are relative to the highest logit so far."""
        old, part, sums = highest[queries], out[queries], total[queries]
        new = torch.maximum(old, logits.amax(1, keepdim=True))
        factor = (old - new).exp_()
        _exp(torch.sub(logits, new, out=weights))
        sums.mul_(factor).add_(weights.sum(1, keepdim=True))
        part.mul_(factor).addmm_(weights, v[keys])
        old.copy_(new)

    for i, j, logits, other in _tiles(x, scale, 2):
        if i != j:
            add(j, logits.T, i, other.T)
        add(i, logits, j, logits)
    return out.div_(total), highest, total


def _dots(grad: Tensor, out: Tensor) -> Tensor:
    """grad . out of each position, (P, C) twice -> (P, 1).

    As products of blocks, like those of grad and the values: where one weight is almost 1, as that
    of a position for itself often is, the difference of the two is otherwise but rounding.
    """
    pairs = zip(grad.split(_side()), out.split(_side()), strict=True)
    return torch.cat([torch.mm(a, b.T).diagonal() for a, b in pairs])[:, None]


def _gradients(
    x: Tensor, v: Tensor, grad: Tensor, dots: Tensor, highest: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients for x and v.

    Args:
        x: (P, E).
        v: (P, C).
        grad: (P, C), of the result, over the query's sum of exponentials.
        dots: (P, 1), grad . result.
        highest: (P, 1), as from `_attend`.
        scale: factor of the logits.
    """
    x_grad, v_grad = torch.zeros_like(x), torch.zeros_like(v)

    def logits_grad(
        queries: slice, logits: Tensor, keys: slice, weights: Tensor, out: Tensor
    ) -> None:
        """The gradient of logits into out; that of the values is added to `v_grad`."""
        _exp(torch.sub(logits, highest[queries], out=weights))
        v_grad[keys].addmm_(weights.T, grad[queries])
        torch.mm(grad[queries], v[keys].T, out=out)
        out.sub_(dots[queries]).mul_(weights)

    for i, j, logits, weights, found, other in _tiles(x, scale, 4):
        if i != j:
            logits_grad(j, logits.T, i, weights.T, other.T)
        logits_grad(i, logits, j, logits, found)
        if i != j:
            found += other
        x_grad[i].addmm_(found, x[j], alpha=scale)
        x_grad[j].addmm_(found.T, x[i], alpha=scale)
    return x_grad, v_grad


def _exp(x: Tensor) -> Tensor:
    """exp in place, with 0 for less than 32 times the least normal number.

    exp is many times slower where it underflows, and products with subnormal numbers 200 times.
    """
    tiny = torch.finfo(x.dtype).tiny
    x.clamp_(min=math.log(16 * tiny)).exp_()
    return F.threshold(x, 32 * tiny, 0, inplace=True)


def _tiles(x: Tensor, scale: float, count: int) -> Iterator[tuple]:
    """Yield blocks i and j >= i of positions, their logits, and count - 1 buffers of the size."""
    side = _side()
    blocks = [slice(k, min(k + side, len(x))) for k in range(0, len(x), side)]
    buffers = [x.new_empty(min(side, len(x)) ** 2) for _ in range(count)]
    for k, i in enumerate(blocks):
        rows = x[i] if scale == 1 else x[i] * scale
        for j in blocks[k:]:
            shape = len(rows), j.stop - j.start
            logits, *others = (t[: shape[0] * shape[1]].view(shape) for t in buffers)
            yield i, j, torch.mm(rows, x[j].T, out=logits), *others


def _side() -> int:
    """Positions of a block."""
    return math.isqrt(_TILE * torch.get_num_threads())
