"""Annotations at the scale of the image that a network gets.

Pipelines of validation resize an image before they load its annotations, as metrics compare at the
original size. A loss, or a picture, needs both at one scale.
"""

from collections.abc import Callable, Iterable

import torch
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from .loading import needs_annotations
from .loading_steps import pipeline_steps

_INSTANCES = ('gt_instances', 'ignored_instances')
_LABEL_MAPS = ('gt_sem_seg', 'gt_edge_map')


def loads_after_resize(dataset) -> bool:
    """Whether the pipeline of a built data set loads annotations after it resizes the image.

    Args:
        dataset: a data set without wrappers.
    """
    resized = False
    for step in pipeline_steps(dataset):
        if needs_annotations(step):
            return resized
        resized |= 'Resize' in type(step).__name__
    return False


def to_image_scale(sample, image_size: tuple[int, int], boxes: bool) -> None:
    """Bring the annotations of a data sample of mmdet or mmseg to the scale of its image.

    Masks and label maps of another size than the image are resized, to the nearest label.

    Args:
        sample: the data sample, with `scale_factor` in its metainfo; it is changed.
        image_size: height and width of the image in pixels.
        boxes: whether boxes are at the original scale, see `loads_after_resize`.
    """
    scale = sample.metainfo.get('scale_factor')
    for name in _INSTANCES:
        instances = sample.get(name)
        if instances is not None and scale is not None:
            _scale_instances(instances, scale, image_size, boxes)
    _change_label_maps(
        sample, lambda labels: _resized(labels, _scaled_size(labels.shape[-2:], scale, image_size))
    )


def pad_label_maps(sample, size: tuple[int, int], fill: int) -> None:
    """Pad the label maps of a data sample on the right and at the bottom.

    Args:
        sample: a data sample; it is changed.
        size: height and width to reach.
        fill: label of the new pixels.
    """

    def padded(labels: Tensor) -> Tensor:
        below, right = (max(0, new - old) for new, old in zip(size, labels.shape[-2:]))
        return torch.nn.functional.pad(labels, (0, right, 0, below), value=fill)

    _change_label_maps(sample, padded)


def _scale_instances(
    instances: InstanceData, scale: Iterable[float], image_size: tuple[int, int], boxes: bool
) -> None:
    width, height = scale
    if boxes and 'bboxes' in instances:
        values = instances.bboxes
        if hasattr(values, 'rescale_'):
            values.rescale_((width, height))
        else:
            instances.bboxes = values * values.new_tensor([width, height] * 2)
    masks = instances.get('masks')
    if masks is not None and (masks.height, masks.width) != image_size:
        size = _scaled_size((masks.height, masks.width), scale, image_size)
        instances.masks = masks.resize(size)


def _scaled_size(
    size: tuple[int, int], scale: Iterable[float] | None, image_size: tuple[int, int]
) -> tuple[int, int]:
    """Height and width of a map of an image once it has the scale of the image."""
    if tuple(size) == image_size or scale is None:
        return image_size
    width, height = scale
    sides = round(size[0] * height), round(size[1] * width)
    return tuple(min(side, limit) for side, limit in zip(sides, image_size))


def _resized(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, H, W) labels at another size, each pixel that of the nearest."""
    rows, columns = (
        (torch.arange(new, device=labels.device) * old).div(new, rounding_mode='floor')
        for new, old in zip(size, labels.shape[-2:])
    )
    return labels[..., rows[:, None], columns]


def _change_label_maps(sample, change: Callable[[Tensor], Tensor]) -> None:
    for name in _LABEL_MAPS:
        maps = sample.get(name)
        if maps is not None:
            changed = {key: change(labels) for key, labels in maps.items()}
            setattr(sample, name, PixelData(metainfo=maps.metainfo, **changed))
