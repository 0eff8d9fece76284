"""Pyramid pooling and attention to what it gives: asymmetric non-local attention.

Source: Asymmetric Non-local Neural Networks for Semantic Segmentation, ICCV 2019,
    arXiv 1908.07678, sections 3.1 and 3.2.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .layout import (
    empty_map,
    is_channels_last,
    project,
    project_by_product,
    project_grads,
)
from .memory import require
from .non_local import softmax_weights
from .precision import disable_autocast, to_autocast_dtype, upcast

_BLOCK = 1 << 22  # elements of the map at a time: 16 MB in fp32, which fit into the cache


def pyramid_pool(x: Tensor, scales: Sequence[int]) -> Tensor:
    """Averages over grids of n x n bins for each n in scales, row by row, one grid after another.

    The bins are those of `adaptive_avg_pool2d`: where n does not divide the size they overlap, and
    where n is larger they repeat pixels. Written as two products with averaging matrices, so it
    exports with dynamic H and W.

    Args:
        x: (N, C, H, W).
        scales: the n of each grid.

    Returns:
        (N, C, S), S = sum of n squared.
    """
    if is_channels_last(x):
        return _pool_channels_last(x, scales)
    by_column = _averages(x.shape[3], scales, x)  # (sum of n, W)
    strips = x @ by_column.mT  # (N, C, H, sum of n)
    grids = []
    for n, strip in zip(scales, strips.split(list(scales), dim=3), strict=True):
        grids.append((_averages(x.shape[2], (n,), x) @ strip).flatten(2))  # (N, C, n * n)
    return torch.cat(grids, dim=2)


def _pool_channels_last(x: Tensor, scales: Sequence[int]) -> Tensor:
    """`pyramid_pool`, rows first, which reads x in its order."""
    by_row = _averages(x.shape[2], scales, x)  # (sum of n, H)
    pixels = x.permute(0, 2, 3, 1)  # (N, H, W, C)
    strips = (by_row @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])  # (N, sum of n, W, C)
    grids = []
    for n, strip in zip(scales, strips.split(list(scales), dim=1), strict=True):
        grids.append((_averages(x.shape[3], (n,), x) @ strip).flatten(1, 2))  # (N, n * n, C)
    return torch.cat(grids, dim=1).mT


def _averages(size: int, scales: Sequence[int], like: Tensor) -> Tensor:
    """The matrix that averages `size` values into n bins; those of all n, one below another."""
    index = torch.arange(size, device=like.device)
    rows = []
    for n in scales:
        bins = torch.arange(n, device=like.device)[:, None]
        first, last = bins * size // n, ((bins + 1) * size + n - 1) // n  # as adaptive pooling
        inside = (index >= first) & (index < last)  # (n, size)
        rows.append(inside.to(like.dtype) / (last - first).to(like.dtype))
    return torch.cat(rows)


def project_and_attend(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float = 1.0,
) -> Tensor:
    """W x[p] + b + sum_s softmax_s(scale * q[p] . k[s]) v[s], for a few keys.

    The attention is added to the projected map in place. Logits and softmax are computed in fp32
    or wider, a few MB of the map over pairs at a time. Saves only the arguments for backward.

    Args:
        x: (N, C, H, W).
        weight: (D, C).
        bias: (D), or None.
        q: (N, E, H, W) queries.
        k: (N, E, S) keys.
        v: (N, D, S) values.
        scale: factor of the logits.

    Returns:
        (N, D, H, W), in channels_last if x is, else contiguous.

    Raises:
        MemoryError: less memory is free than the result takes.
    """
    x, weight, bias = (t if t is None else to_autocast_dtype(t) for t in (x, weight, bias))
    v = v.to(x.dtype)
    with disable_autocast(x):
        if is_compiling():
            weights = softmax_weights(q.flatten(2), k, scale).to(v.dtype)  # (N, H W, S)
            y = project(x, weight, bias, last=is_channels_last(x))
            return torch.baddbmm(y.flatten(2), v, weights.mT).unflatten(2, x.shape[2:])
        require(x.shape[0] * v.shape[1] * x.shape[2:].numel() * x.element_size(), x, 'attention')
        return _ProjectAndAttend.apply(x, weight, bias, q, k, v, scale)


class _ProjectAndAttend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, q, k, v)
        ctx.scale = scale
        y = project_by_product(x, weight, bias, is_channels_last(x))
        for n, pixels in _blocks(q, k):
            image_q = upcast(q[n].flatten(1)[:, pixels])
            weights = _softmax_over_keys(image_q, upcast(k[n]) * scale)
            y[n].flatten(1)[:, pixels].addmm_(v[n], weights.to(v.dtype))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, q, k, v = ctx.saved_tensors
        needs_x, _, needs_bias, *_ = ctx.needs_input_grad
        grad = grad.flatten(2)
        project_grad = project_grads(x, weight, grad.mT, needs_x, needs_bias)
        wide_k, wide_v = upcast(k) * ctx.scale, upcast(v)
        q_grad = empty_map(q.shape, wide_k, is_channels_last(q))
        k_grad, v_grad = torch.zeros_like(wide_k), torch.zeros_like(wide_v)
        for n, pixels in _blocks(q, k):
            image_q = upcast(q[n].flatten(1)[:, pixels])
            image_grad = upcast(grad[n, :, pixels])
            weights = _softmax_over_keys(image_q, wide_k[n])
            v_grad[n].addmm_(image_grad, weights.mT)
            weights_grad = torch.mm(wide_v[n].mT, image_grad, out=torch.empty_like(weights))
            logits_grad = _softmax_grad(weights_grad, weights)
            torch.mm(wide_k[n], logits_grad, out=q_grad[n].flatten(1)[:, pixels])
            k_grad[n].addmm_(image_q, logits_grad.mT, alpha=ctx.scale)
        return *project_grad, q_grad.to(q.dtype), k_grad.to(k.dtype), v_grad.to(v.dtype), None


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[int, slice]]:
    """Images, and pixels of which the map over pairs is computed at a time."""
    count = max(1, _BLOCK // k.shape[2])
    for n in range(len(q)):
        for first in range(0, q.shape[2:].numel(), count):
            yield n, slice(first, first + count)


def _softmax_over_keys(q: Tensor, k: Tensor) -> Tensor:
    """(E, R), (E, S) -> (S, R), in the memory order of q."""
    by_key = q.stride(1) == 1
    logits = torch.mm(k.mT, q) if by_key else torch.mm(q.mT, k)
    weights = torch.softmax(logits, 0 if by_key else 1, out=logits)
    return weights if by_key else weights.mT


def _softmax_grad(grad: Tensor, weights: Tensor) -> Tensor:
    """The gradient of the logits from that of the weights, both (S, R) in one memory order."""
    if weights.stride(1) == 1:
        return torch._softmax_backward_data(grad, weights, 0, weights.dtype)
    return torch._softmax_backward_data(grad.mT, weights.mT, 1, weights.dtype).mT
