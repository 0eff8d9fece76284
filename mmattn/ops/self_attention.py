"""Softmax attention whose queries are its keys: logits are symmetric, and computed once for both.

For p and s of two blocks of positions, x[p] . x[s] is the logit of s for the query p, and of p for
the query s. Half of the products are left, of five in forward and backward together 3.5; a block
of logits stays in the cache until it is used up.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .precision import upcast

_POSITIONS = 768  # of a block: logits of two take 2.4 MB in fp32


class SelfAttention(torch.autograd.Function):
    """o[p] = sum_s softmax_s(scale x[p] . x[s]) v[s]: (N, E, P), (N, C, P) -> (N, C, P).

    Saves x, v, the result and one number for each position.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, scale: float) -> Tensor:
        out = v.new_empty(len(v), v.shape[2], v.shape[1])
        log_sums = upcast(x[:0]).new_empty(len(x), x.shape[2])
        for n, (rows, values) in enumerate(zip(upcast(x).mT, upcast(v).mT, strict=True)):
            result, log_sums[n] = _attend(rows.contiguous(), values.contiguous(), scale)
            out[n] = result
        ctx.save_for_backward(x, v, out, log_sums)
        ctx.scale = scale
        return out.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        x, v = saved[:2]
        grads = [t.new_empty(t.mT.shape) for t in (x, v)]  # (N, P, channels)
        maps = (upcast(t) for t in (x.mT, v.mT, grad.mT, saved[2]))
        for n, (rows, values, given, out) in enumerate(zip(*maps, strict=True)):
            dots = (given * out).sum(1)
            arguments = (t.contiguous() for t in (rows, values, given))
            found = _gradients(*arguments, dots, saved[3][n], ctx.scale)
            for target, result in zip(grads, found, strict=True):
                target[n] = result
        return *(t.mT for t in grads), None


def _attend(x: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(P, E), (P, C) -> (P, C), and the logarithm of each query's sum of exponentials, (P)."""
    out, total = v.new_zeros(v.shape), v.new_zeros(len(v), 1)
    highest = v.new_full((len(v), 1), -torch.inf)

    def add(queries: slice, logits: Tensor, keys: slice, weights: Tensor) -> None:
        """Add keys to the sums of queries; all are relative to the highest logit so far."""
        old, part, sums = highest[queries], out[queries], total[queries]
        new = torch.maximum(old, logits.amax(1, keepdim=True))
        factor = (old - new).exp_()
        torch.exp(torch.sub(logits, new, out=weights), out=weights)
        sums.mul_(factor).add_(weights.sum(1, keepdim=True))
        part.mul_(factor).addmm_(weights, v[keys])
        old.copy_(new)

    for i, j, logits, weights in _tiles(x, scale, 2):
        if i != j:
            add(j, logits.T, i, weights.T)
        add(i, logits, j, weights)
    return out.div_(total), (highest + total.log_())[:, 0]


def _gradients(
    x: Tensor, v: Tensor, grad: Tensor, dots: Tensor, log_sums: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients for x and v.

    Args:
        x: (P, E).
        v: (P, C).
        grad: (P, C), of the result.
        dots: (P), grad . result.
        log_sums: (P), as from `_attend`.
        scale: factor of the logits.
    """
    x_grad, v_grad = torch.zeros_like(x), torch.zeros_like(v)

    def logits_grad(
        queries: slice, logits: Tensor, keys: slice, weights: Tensor, out: Tensor
    ) -> None:
        """The gradient of logits into out; that of the values is added to `v_grad`."""
        torch.exp(torch.sub(logits, log_sums[queries, None], out=weights), out=weights)
        v_grad[keys].addmm_(weights.T, grad[queries])
        torch.mm(grad[queries], v[keys].T, out=out)
        out.sub_(dots[queries, None]).mul_(weights)

    for i, j, logits, weights, first, second in _tiles(x, scale, 4):
        logits_grad(i, logits, j, weights, first)
        if i == j:
            x_grad[i].addmm_(first, x[j], alpha=scale)
            x_grad[j].addmm_(first.T, x[i], alpha=scale)
            continue
        logits_grad(j, logits.T, i, weights.T, second.T)
        both = first.add_(second)
        x_grad[i].addmm_(both, x[j], alpha=scale)
        x_grad[j].addmm_(both.T, x[i], alpha=scale)
    return x_grad, v_grad


def _tiles(x: Tensor, scale: float, count: int) -> Iterator[tuple]:
    """Yield blocks i and j >= i of positions, their logits, and count - 1 buffers of the size."""
    starts = range(0, len(x), _POSITIONS)
    blocks = [slice(k, min(k + _POSITIONS, len(x))) for k in starts]
    buffers = x.new_empty(count, min(_POSITIONS, len(x)) ** 2)
    for k, i in enumerate(blocks):
        rows = x[i] if scale == 1 else x[i] * scale
        for j in blocks[k:]:
            shape = len(rows), j.stop - j.start
            logits, *others = buffers[:, : shape[0] * shape[1]].unflatten(1, shape)
            yield i, j, torch.mm(rows, x[j].T, out=logits), *others
