"""Cross-entropy and accuracy of logits at the size of the labels, without a map of that size.

The logits are upsampled, compared with the labels and differentiated block by block. Source of the
gradient that is made in the forward pass: Liger Kernel, arXiv 2410.10989, section 3.2.

Reference code: open-mmlab/mmsegmentation, mmseg/models/decode_heads/decode_head.py
(`loss_by_feat`), mmseg/models/losses/cross_entropy_loss.py and accuracy.py.
Differs from it in: a pixel whose label shares the largest logit with another class is counted as
right, where `topk` takes either.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmattn.torch_compat import is_compiling

from .precision import disable_autocast, upcast
from .resize import interpolation_pairs, interpolation_weights

_BLOCK = 1 << 18  # upsampled values at a time on a CPU, which fit into the cache
_BLOCK_GPU = 1 << 26
_KERNEL_DEVICES = ('cuda',)  # of the kernels in Triton


class Criterion(NamedTuple):
    """What is compared with the labels, and how.

    Attributes:
        ignore_index: label of pixels that are left out.
        align_corners: as in `torch.nn.functional.interpolate`.
        sigmoid: binary cross-entropy of each class, for which labels below 0 are left out, too;
            else cross-entropy. A single channel is that of class 1 of two.
    """

    ignore_index: int = 255
    align_corners: bool = False
    sigmoid: bool = False


_DEFAULT = Criterion()


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    class_weight: Tensor | None = None,
    criterion: Criterion = _DEFAULT,
) -> tuple[Tensor, Tensor]:
    """Sum over pixels of the cross-entropy of bilinearly upsampled logits, and the right pixels.

    For backward it keeps the gradient of the logits, of their size. Differentiable once, with
    respect to the logits.

    Args:
        logits: (N, C, h, w).
        labels: (N, H, W), whole numbers below C (2 for a single channel), or `ignore_index`.
        weights: (N, H, W), factors of pixels; None for 1.
        class_weight: (C), factors of pixels by their label; of a single channel, of class 1. None
            for 1.
        criterion: how logits and labels are compared.

    Returns:
        The sum, in fp32 or wider, and how many pixels have their largest logit at their label, of
        those that are not left out; a single channel counts as class 0.

    Raises:
        IndexError: a label is no class, on a CPU; on other devices the sum is NaN.
        ValueError: `class_weight` with `sigmoid` and several channels.
    """
    _check(logits, class_weight, criterion)
    if is_compiling():
        losses, right = _formula(logits, labels, class_weight, criterion)
        return (losses if weights is None else losses * weights).sum(), right.sum()
    return _Sum.apply(logits, labels, weights, class_weight, criterion)


def upsampled_losses(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    criterion: Criterion = _DEFAULT,
) -> Tensor:
    """The cross-entropy of each pixel, (N, H, W), 0 where it is left out; without a gradient.

    Args and errors as in `upsampled_cross_entropy`.
    """
    _check(logits, class_weight, criterion)
    with torch.no_grad():
        if is_compiling():
            return _formula(logits, labels, class_weight, criterion)[0]
        losses = logits.new_empty(labels.shape, dtype=upcast(logits[:0]).dtype)
        _sum(logits, labels, None, class_weight, criterion, losses=losses)
        return losses


def _check(logits: Tensor, class_weight: Tensor | None, criterion: Criterion) -> None:
    if criterion.sigmoid and class_weight is not None and logits.shape[1] > 1:
        raise ValueError(
            f'class_weight with sigmoid and {logits.shape[1]} channels: allowed is one channel'
        )


def _formula(
    logits: Tensor, labels: Tensor, class_weight: Tensor | None, criterion: Criterion
) -> tuple[Tensor, Tensor]:
    """The loss of each pixel, and whether it is right."""
    size, align_corners = labels.shape[1:], criterion.align_corners
    up = F.interpolate(upcast(logits), size, mode='bilinear', align_corners=align_corners)
    labels = labels.long()
    valid = _is_valid(labels, criterion)
    right = valid & (up.argmax(1) == labels)
    if not criterion.sigmoid:
        options = dict(ignore_index=criterion.ignore_index, reduction='none')
        return F.cross_entropy(up, labels, class_weight, **options), right
    first = int(up.shape[1] == 1)
    classes = torch.arange(first, first + up.shape[1], device=up.device)
    target = (labels[:, None] == classes[:, None, None]).to(up.dtype)
    losses = F.binary_cross_entropy_with_logits(
        up, target, reduction='none', pos_weight=class_weight
    )
    return losses.sum(1) * valid, right


def _is_valid(labels: Tensor, criterion: Criterion) -> Tensor:
    valid = labels != criterion.ignore_index
    return valid & (labels >= 0) if criterion.sigmoid else valid


class _Sum(torch.autograd.Function):
    """The sum over pixels, whose gradient is made with it."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        class_weight: Tensor | None,
        criterion: Criterion,
    ) -> tuple[Tensor, Tensor]:
        grad = None
        if ctx.needs_input_grad[0]:  # products are written into it, which takes no other format
            grad = torch.zeros_like(upcast(logits), memory_format=torch.contiguous_format)
        total, right = _sum(logits, labels, weights, class_weight, criterion, grad=grad)
        ctx.mark_non_differentiable(right)
        if grad is not None:
            ctx.save_for_backward(grad)
            ctx.dtype = logits.dtype
        return total, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return (grad * factor).to(ctx.dtype), None, None, None, None


def _sum(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    class_weight: Tensor | None,
    criterion: Criterion,
    losses: Tensor | None = None,
    grad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum and the number of right pixels.

    Args:
        logits, labels, weights, class_weight, criterion: as in `upsampled_cross_entropy`.
        losses: (N, H, W), to which the loss of each pixel is written, with its class weight.
        grad: (N, C, h, w) of zeros, to which the gradient of the sum is added.
    """
    with disable_autocast(logits):
        maps = upcast(logits)
        total = torch.zeros((), dtype=torch.float64, device=maps.device)
        right = torch.zeros((), dtype=torch.int64, device=maps.device)
        for part in _parts(maps, labels, criterion, grad):
            right += part.right.sum()
            factor = part.targets.factor
            if class_weight is not None:
                by_label = class_weight.to(factor.dtype)[part.targets.index]
                factor *= 1 + (by_label - 1) * part.targets.hit
            if losses is not None:
                losses[part.place] = part.losses * factor
            if weights is not None:
                factor *= weights[part.place]
            total += (part.losses * factor).sum(dtype=torch.float64)
            if grad is not None:
                part.add_gradient()
        return total.to(maps.dtype), right


def _parts(
    maps: Tensor, labels: Tensor, criterion: Criterion, grad: Tensor | None
) -> Iterator['_Rows | _All']:
    """All pixels, compared with their labels.

    Args:
        maps: (N, C, h, w) logits.
        labels, criterion, grad: as in `_sum`; to `grad`, (N, C, h, w), parts add their gradient.
    """
    align_corners = criterion.align_corners
    columns = interpolation_weights(maps.shape[3], labels.shape[2], maps, align_corners)
    above, share = interpolation_pairs(maps.shape[2], labels.shape[1], maps, align_corners)
    if maps.device.type in _KERNEL_DEVICES:
        # imports Triton, which may be missing and takes a second
        from .upsampled_loss_triton import fused_available

        if fused_available(maps):
            yield _All(maps, columns, above, share, labels, criterion, grad)
            return
    weights = interpolation_weights(maps.shape[2], labels.shape[1], maps, align_corners)
    limit = _BLOCK if maps.device.type == 'cpu' else _BLOCK_GPU
    count = max(limit // max(maps.shape[1] * labels.shape[2], 1), 1)
    first, last = above.tolist(), maps.shape[2] - 1

    def sources_of(rows: slice) -> slice:
        return slice(first[rows.start], min(first[rows.stop - 1] + 1, last) + 1)

    # bands of labels, each made of about `count` rows of the logits
    height = count * max(labels.shape[1] // maps.shape[2], 1)
    for image, band in itertools.product(range(len(maps)), _slices(0, labels.shape[1], height)):
        band_sources = sources_of(band)
        wide = maps[image, :, band_sources] @ columns.mT  # (C, k, W)
        wide_grad = None if grad is None else torch.zeros_like(wide)
        for rows in _slices(band.start, band.stop, count):
            sources = sources_of(rows)
            offset = band_sources.start
            local = slice(sources.start - offset, sources.stop - offset)
            yield _Rows(
                (image, rows), wide[:, local], weights[rows, sources], labels, criterion,
                None if wide_grad is None else wide_grad[:, local],
            )  # fmt: skip
        if grad is not None:
            grad[image, :, band_sources] += wide_grad @ columns


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


class _Targets:
    """What the labels of pixels (...) ask for.

    Args:
        labels: (...).
        channels: number of channels of the logits.
        criterion: how both are compared.
        dtype: of the factor.

    Attributes:
        valid: whether a pixel counts.
        index: channel of the label, 0 where it has none.
        hit: whether the label has a channel; 1 for all that count.
        factor: of the losses; 0 for pixels that are left out.
    """

    def __init__(
        self, labels: Tensor, channels: int, criterion: Criterion, dtype: torch.dtype
    ) -> None:
        self.valid = _is_valid(labels, criterion)
        self.factor = self.valid.to(dtype)
        self.is_single = criterion.sigmoid and channels == 1
        labels = labels.long().masked_fill(~self.valid, 0)
        labels = _limit(labels, 2 if self.is_single else channels, self.factor)
        self.index = torch.zeros_like(labels) if self.is_single else labels
        self.hit = labels if self.is_single else 1

    def right(self, hits: Tensor) -> Tensor:
        """The right pixels, where hits are those whose label's channel has the largest logit."""
        return self.valid & ((self.hit == 0) if self.is_single else hits)


class _Rows:
    """Some rows of the labels of an image.

    Args:
        place: image and rows, an index of (N, H, W).
        sources: (C, k, W) rows of the logits, in the width of the labels.
        weights: (R, k), of these rows in those of the labels.
        labels, criterion: as in `_parts`.
        sources_grad: (C, k, W), to which the gradient is added; None for none.
    """

    def __init__(
        self,
        place: tuple[int, slice],
        sources: Tensor,
        weights: Tensor,
        labels: Tensor,
        criterion: Criterion,
        sources_grad: Tensor | None,
    ) -> None:
        self.place, self.weights, self.sigmoid = place, weights, criterion.sigmoid
        self.up = up = weights @ sources  # (C, R, W); exponentials and gradients overwrite it
        self.sources_grad = sources_grad
        self.targets = _Targets(labels[place], len(up), criterion, up.dtype)
        peak, picked = up.amax(0), up.gather(0, self.targets.index[None])[0]
        self.right = self.targets.right(picked == peak)
        if self.sigmoid:
            losses = F.softplus(up).sum(0) - picked * self.targets.hit
        else:
            self.normal = up.sub_(peak).exp_().sum(0)
            losses = self.normal.log() + (peak - picked)
        self.losses = losses.masked_fill_(~self.targets.valid, 0)

    def add_gradient(self) -> None:
        factor = self.targets.factor
        if self.sigmoid:
            grad = self.up.sigmoid_().mul_(factor)
        else:
            grad = self.up.mul_(factor / self.normal)
        grad.scatter_add_(0, self.targets.index[None], -(factor * self.targets.hit)[None])
        self.sources_grad += self.weights.mT @ grad


class _All:
    """All pixels at a time, by kernels in Triton.

    Args:
        maps, labels, criterion, grad: as in `_parts`.
        columns: (W, w) weights of the columns.
        above, share: the rows of the logits that rows of the labels lie between.
    """

    place = ...

    def __init__(
        self,
        maps: Tensor,
        columns: Tensor,
        above: Tensor,
        share: Tensor,
        labels: Tensor,
        criterion: Criterion,
        grad: Tensor | None,
    ) -> None:
        from .upsampled_loss_triton import pixel_losses

        self.targets = targets = _Targets(labels, maps.shape[1], criterion, maps.dtype)
        has_channel = targets.valid & (targets.hit == 1) if targets.is_single else targets.valid
        self.index = targets.index.masked_fill(~has_channel, -1).int()
        self.columns, self.grad = columns, grad
        self.wide = (maps @ columns.mT).contiguous()
        self.rows = above, share, criterion.sigmoid
        losses, self.normal, hits = pixel_losses(self.wide, self.index, *self.rows)
        self.losses = losses.masked_fill_(~targets.valid, 0)
        self.right = targets.right(hits)

    def add_gradient(self) -> None:
        from .upsampled_loss_triton import logits_grad

        factor = self.targets.factor.contiguous()
        wide_grad = logits_grad(self.wide, self.index, self.normal, factor, *self.rows)
        torch.matmul(wide_grad, self.columns, out=self.grad)


def _limit(labels: Tensor, classes: int, factor: Tensor) -> Tensor:
    """Labels within the classes; for others an error, or on a GPU, which it would wait for, NaN."""
    if labels.device.type == 'cpu':
        low, high = labels.aminmax() if labels.numel() else (0, 0)
        if low < 0 or high >= classes:
            raise IndexError(
                f'label {int(low if low < 0 else high)}: allowed are 0 to {classes - 1}, and '
                'ignore_index'
            )
        return labels
    factor.masked_fill_((labels < 0) | (labels >= classes), float('nan'))
    return labels.clamp(0, classes - 1)
