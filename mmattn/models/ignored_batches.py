"""Segmentors that train on crops without a labelled pixel."""

import functools
from collections.abc import Iterator

import torch
from mmengine.structures import PixelData
from torch import Tensor, nn

from mmattn.log import warn

_PIXEL_LOSSES = {'CrossEntropyLoss', 'OhemCrossEntropy'}  # sums over labelled pixels alone


class IgnoredBatches:
    """Mixin: a training batch without a labelled pixel has loss 0, whatever the losses are.

    All parameters that a labelled batch reaches then get zero gradients. The 1st, 10th, 100th, ...
    crop without a labelled pixel is logged; losses without gradients, of a validation, do not
    count.

    Attributes:
        crops: number of crops that this process has trained on.
        ignored_crops: how many of them had no labelled pixel.
    """

    crops = ignored_crops = 0

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        if isinstance(getattr(self, 'data_preprocessor', None), nn.Module):
            self.data_preprocessor.register_forward_pre_hook(
                functools.partial(_note_labelled, self)
            )

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Images (N, 3, H, W) with label maps -> the losses of the heads."""
        heads = pixel_heads(self)
        ignore_index = heads[0].ignore_index if heads else None
        labels = [getattr(sample, 'gt_sem_seg', None) for sample in data_samples]
        if ignore_index is None or not labels or None in labels:  # labels of another kind
            return super().loss(inputs, data_samples)
        is_empty = [not _is_labelled(sample, ignore_index) for sample in data_samples]
        for sample, empty in zip(data_samples, is_empty) if torch.is_grad_enabled() else ():
            self.crops += 1
            if empty:
                self.ignored_crops += 1
                self._warn(sample, heads, all(is_empty))
        if not all(is_empty):
            return super().loss(inputs, data_samples)
        # Where all pixels are ignored, some losses are nan, some are not 0, and some fail. With any
        # valid labels they are finite and reach all parameters; times 0 they change nothing.
        num_classes = min(head.num_classes for head in heads)
        classes = [index for index in range(num_classes) if index != ignore_index] or [0]
        losses = super().loss(inputs, [_with_any_labels(s, classes) for s in data_samples])
        return {
            key: [part * 0 for part in value] if isinstance(value, list | tuple) else value * 0
            for key, value in losses.items()
            if 'loss' in key
        }

    def _warn(self, sample, heads: list[nn.Module], whole_batch: bool) -> None:
        if str(self.ignored_crops).strip('0') != '1':
            return
        losses = {type(loss).__name__ for head in heads for loss in pixel_losses(head)}
        others = ', '.join(sorted(losses - _PIXEL_LOSSES))
        still_counts = f'{others} may still count it in its batch'
        warn(
            f'no labelled pixel in {self.ignored_crops} of {self.crops} crops so far, '
            f'now of {sample.metainfo.get("img_path", "an image")}: '
            f'{still_counts if others and not whole_batch else "no loss from it"}'
        )


def _note_labelled(model: nn.Module, _: nn.Module, inputs: tuple) -> None:
    """Note which crops have labels before they go to a GPU: looking there would wait for it."""
    batch, heads = inputs[0], pixel_heads(model)
    if not heads or not isinstance(batch, dict) or not isinstance(batch.get('data_samples'), list):
        return
    for sample in batch['data_samples']:
        labels = getattr(sample, 'gt_sem_seg', None)
        if labels is not None and labels.data.device.type == 'cpu':
            sample.set_metainfo(dict(is_labelled=_is_labelled(sample, heads[0].ignore_index)))


def _is_labelled(sample, ignore_index: int) -> bool:
    noted = sample.metainfo.get('is_labelled')
    return bool((sample.gt_sem_seg.data != ignore_index).any()) if noted is None else noted


def pixel_heads(model: nn.Module) -> list[nn.Module]:
    """The heads that classify pixels."""
    names = ('decode_head', 'auxiliary_head')
    parts = [part for name in names if (part := getattr(model, name, None)) is not None]
    heads = [h for p in parts for h in (p if isinstance(p, nn.ModuleList) else [p])]
    return [h for h in heads if hasattr(h, 'ignore_index') and hasattr(h, 'num_classes')]


def pixel_losses(head: nn.Module) -> Iterator[nn.Module]:
    """The losses of a head."""
    loss = getattr(head, 'loss_decode', None)
    if isinstance(loss, nn.Module):
        yield from loss if isinstance(loss, nn.ModuleList) else [loss]


def _with_any_labels(sample, classes: list[int]):
    """A copy of a sample whose labels are the classes in turn."""
    label = sample.gt_sem_seg.data
    index = torch.arange(label.numel(), device=label.device) % len(classes)
    labels = index.new_tensor(classes)[index].view_as(label).to(label.dtype)
    copy = sample.new()
    copy.gt_sem_seg = PixelData(data=labels)
    return copy
