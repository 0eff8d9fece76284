"""Spatial group-wise enhance: groups of channels gated by the similarity to their mean.

Source: Spatial Group-wise Enhance, arXiv 1905.09646, eq. 1-5, with the unbiased deviation and eps
added to it, as in the authors' code. On a map of one pixel the similarity is 0.

Here maps are (N, C, H, W), their G groups of C / G channels; P = H W.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .layout import channels_last, is_channels_last, to_contiguous
from .precision import disable_autocast, upcast

_PART = 1 << 18  # values at a time on a CPU; their intermediates fit into the cache
_PART_GPU = 1 << 26


def group_similarity(parts: Tensor, eps: float) -> Tensor:
    """Similarity of each position to the mean of its channel group, standardised over positions.

    Args:
        parts: (N, G, C / G, P), channels by group.
        eps: added to the deviation, in units of x squared.

    Returns:
        (N, G, P) in fp32 or wider.
    """
    with disable_autocast(parts):
        parts = upcast(parts)
        t = (parts.mean(-1, keepdim=True).mT @ parts).squeeze(2)  # (N, G, P)
        t = t - t.mean(-1, keepdim=True)
        if t.shape[-1] > 1:  # else t is 0 and there is no deviation
            # equals std, which is many times slower
            deviation = torch.linalg.vector_norm(t, dim=-1, keepdim=True) / (t.shape[-1] - 1) ** 0.5
            t = t / (deviation + eps)
        return t


def group_enhance(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, factor: float = 1
) -> Tensor:
    """x * factor * sigmoid(w t + b), t as `group_similarity` gives it.

    For backward autograd saves no map but x.

    Args:
        x: (N, C, H, W).
        groups: G.
        weight, bias: w and b of each group, (G) each.
        eps: see `group_similarity`.
        factor: of all gates.

    Returns:
        (N, C, H, W) in the dtype of x, channels_last if x is, else contiguous.
    """
    if not is_compiling():
        return _GroupEnhance.apply(x, weight, bias, groups, eps, factor)
    parts = x.unflatten(1, (groups, -1)).flatten(3)  # (N, G, C / G, P)
    t = group_similarity(parts, eps)
    gate = (t * weight[:, None] + bias[:, None]).sigmoid()
    gate = gate if factor == 1 else factor * gate
    return (parts * gate[:, :, None].to(x.dtype)).reshape(x.shape)


class _GroupEnhance(torch.autograd.Function):
    """`group_enhance`, a few groups at a time; t and the gates are computed again for backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, factor: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.arguments = groups, eps, factor
        planes = to_contiguous(x)
        y = torch.empty_like(planes) if planes is x else planes
        affine = _by_image(x, weight, bias)
        with disable_autocast(x):
            for part, out, w, b in _blocks(groups, (planes, y), *affine):
                source = upcast(part)
                _, t, deviation = _similarity(source, eps)
                gate = t.mul_(w / deviation).add_(b).sigmoid_()
                gate = gate if factor == 1 else gate.mul_(factor)
                torch.mul(source, gate[:, None], out=out)
        return channels_last(y) if is_channels_last(x) else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        groups, eps, factor = ctx.arguments
        planes, grads = to_contiguous(x), to_contiguous(grad)
        x_grad = torch.empty_like(grads) if grads is grad else grads
        affine = _by_image(x, weight, bias)
        affine += [torch.zeros_like(t) for t in affine]
        with disable_autocast(x):
            for part, dy, out, w, b, w_grad, b_grad in _blocks(
                groups, (planes, grads, x_grad), *affine
            ):
                source, dy = upcast(part), upcast(dy)
                pixels = source.shape[2]
                mean, t, deviation = _similarity(source, eps)  # t before the division
                norm = (deviation - eps) * max(pixels - 1, 1) ** 0.5
                gate = (t * (w / deviation)).add_(b).sigmoid_()
                h = torch.ops.aten.sigmoid_backward((dy * source).sum(1), gate)  # of w t + b
                if factor != 1:
                    h, gate = h.mul_(factor), gate.mul_(factor)
                along = (h * t).sum(1, keepdim=True) / deviation
                w_grad.copy_(along)
                b_grad.copy_(h.sum(1, keepdim=True))
                # of the standardised t, then of t
                slope = along * w / (deviation * norm * max(pixels - 1, 1) ** 0.5)
                slope = slope.masked_fill_(norm <= 0, 0)
                h = h.mul_(w / deviation).sub_(t.mul_(slope))
                h = h.sub_(h.mean(1, keepdim=True))[:, None]
                means_grad = source @ h.mT  # (M, C / G, 1)
                result = torch.mul(dy, gate[:, None], out=out if out.dtype == dy.dtype else None)
                result.baddbmm_(mean, h).add_(means_grad / pixels)
                if result is not out:
                    out.copy_(result)
        if is_channels_last(x):
            x_grad = channels_last(x_grad)
        sums = (t.view(len(x), groups).sum(0) for t in affine[2:])
        return x_grad, *(s.to(t.dtype) for s, t in zip(sums, (weight, bias))), None, None, None


def _by_image(x: Tensor, *values: Tensor) -> list[Tensor]:
    """Values (G) repeated for each image, (N G), in the dtype of x or fp32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return [t.to(wide).repeat(len(x)) for t in values]


def _similarity(parts: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(M, C / G, P) -> mean (M, C / G, 1), centred product (M, P), deviation + eps (M, 1)."""
    mean = parts.mean(2, keepdim=True)
    t = (mean.mT @ parts)[:, 0]
    t = t.sub_(t.mean(1, keepdim=True))
    deviation = torch.linalg.vector_norm(t, dim=1, keepdim=True)
    return mean, t, deviation.div_(max(t.shape[1] - 1, 1) ** 0.5).add_(eps)


def _blocks(groups: int, maps: tuple[Tensor, ...], *values: Tensor):
    """Some groups at a time: views (M, C / G, P) of contiguous maps, (M, 1) of values (N G)."""
    maps = [t.view(len(t) * groups, t.shape[1] // groups, t.shape[2:].numel()) for t in maps]
    part = _PART if maps[0].device.type == 'cpu' else _PART_GPU
    count = max(part // max(maps[0].shape[1:].numel(), 1), 1)
    return zip(*(t.split(count) for t in (*maps, *(v[:, None] for v in values))), strict=True)
