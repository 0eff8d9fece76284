"""Losses of decode heads without maps of the size of the labels.

Reference code: open-mmlab/mmsegmentation, mmseg/models/decode_heads/decode_head.py
(`loss_by_feat`), mmseg/models/losses/cross_entropy_loss.py,
mmseg/structures/sampler/ohem_pixel_sampler.py.
Differs from it in: class weights go with `avg_non_ignore`, where it raises an IndexError.
"""

import functools

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.structures import OHEMPixelSampler
from torch import Tensor, nn

from mmattn.ops import Criterion, upsampled_cross_entropy, upsampled_losses

from .ignored_batches import pixel_heads, pixel_losses

_EPS = torch.finfo(torch.float32).eps


class FusedLosses:
    """Mixin: upsampling, cross-entropy and accuracy of heads as one operation, in less memory.

    For heads whose losses are all `CrossEntropyLoss` averaged over pixels, with or without class
    weights, sigmoid and `OHEMPixelSampler`; all others take MMSegmentation's own path. The values
    are the same, see `mmattn.ops.upsampled_cross_entropy`.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        for head in pixel_heads(self):
            if getattr(type(head), 'loss_by_feat', None) is BaseDecodeHead.loss_by_feat:
                head.loss_by_feat = functools.partial(loss_by_feat, head)


def loss_by_feat(head: BaseDecodeHead, seg_logits: Tensor, batch_data_samples: list) -> dict:
    """`BaseDecodeHead.loss_by_feat`: logits (N, C, h, w) -> losses by name, and accuracy."""
    if not _is_fused(head):
        return BaseDecodeHead.loss_by_feat(head, seg_logits, batch_data_samples)
    labels = head._stack_batch_gt(batch_data_samples).squeeze(1)
    valid = labels != head.ignore_index
    weights = _sample(head, seg_logits, labels, valid) if head.sampler is not None else None
    losses = {}
    for loss in pixel_losses(head):
        class_weight = _class_weight(loss, seg_logits)
        total, right = upsampled_cross_entropy(
            seg_logits, labels, weights, class_weight, _criterion(head, loss)
        )
        value = loss.loss_weight * total / _average_factor(loss, seg_logits, labels, valid)
        losses[loss.loss_name] = losses.get(loss.loss_name, 0) + value
    if getattr(head, 'measures_accuracy', True):
        losses['acc_seg'] = (right.reshape(1) + _EPS) * 100 / (valid.sum() + _EPS)
    return losses


def measure_accuracy(network: nn.Module, needed: bool) -> None:
    """Let heads measure the accuracy of the next steps, which is only logged, or leave it out."""
    for head in pixel_heads(network):
        head.measures_accuracy = needed


def _is_fused(head: BaseDecodeHead) -> bool:
    losses = list(pixel_losses(head))
    sampler = head.sampler
    if sampler is not None:
        # without a threshold the sampler sorts the losses of pixels; binary ones are of classes
        has_classes = any(loss.use_sigmoid for loss in losses if hasattr(loss, 'use_sigmoid'))
        if type(sampler) is not OHEMPixelSampler or (has_classes and sampler.thresh is None):
            return False
    return bool(losses) and all(
        type(loss) is CrossEntropyLoss
        and not loss.use_mask
        and loss.reduction == 'mean'
        and not (loss.use_sigmoid and loss.class_weight is not None and head.out_channels > 1)
        for loss in losses
    )


def _criterion(head: BaseDecodeHead, loss: CrossEntropyLoss) -> Criterion:
    return Criterion(head.ignore_index, head.align_corners, loss.use_sigmoid)


def _class_weight(loss: CrossEntropyLoss, like: Tensor) -> Tensor | None:
    if loss.class_weight is None:
        return None
    return torch.as_tensor(loss.class_weight, dtype=torch.float32, device=like.device)


def _average_factor(
    loss: CrossEntropyLoss, logits: Tensor, labels: Tensor, valid: Tensor
) -> Tensor | int:
    """What the sum over pixels is divided by."""
    class_weight = _class_weight(loss, logits)
    if loss.use_sigmoid:
        channels = logits.shape[1]
        if not loss.avg_non_ignore:
            return channels * labels.numel()
        return channels * (valid & (labels >= 0)).sum() + _EPS
    if class_weight is not None:
        return (class_weight[labels.long().masked_fill(~valid, 0)] * valid).sum() + _EPS
    return valid.sum() + _EPS if loss.avg_non_ignore else labels.numel()


@torch.no_grad()
def _sample(head: BaseDecodeHead, logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """`OHEMPixelSampler.sample`: (N, H, W), 1 for the pixels that are hard, else 0."""
    sampler = head.sampler
    kept = sampler.min_kept * len(labels)
    if sampler.thresh is not None:
        criterion = Criterion(head.ignore_index, head.align_corners)
        probabilities = upsampled_losses(logits, labels, None, criterion).neg_().exp_()
        ordered = probabilities.masked_fill(~valid, float('inf')).flatten().sort().values
        threshold = ordered.take((valid.sum() - 1).clamp(0, kept)).clamp(min=sampler.thresh)
        return (valid & (probabilities < threshold)).to(probabilities.dtype)
    losses = sum(
        loss.loss_weight
        * upsampled_losses(logits, labels, _class_weight(loss, logits), _criterion(head, loss))
        for loss in pixel_losses(head)
    )
    hardest = losses.masked_fill(~valid, -1).flatten().argsort(descending=True)[:kept]
    weights = torch.zeros_like(losses).flatten()
    weights[hardest] = 1
    return weights.view_as(losses) * valid
