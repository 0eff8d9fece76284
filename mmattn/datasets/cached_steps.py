"""The loading steps of MMCV and MMSegmentation, reading a data set's copies where it has them."""

import cv2
import mmcv.transforms
import mmseg.datasets.transforms
import numpy as np

from .image_cache import ImageCache


class LoadImageFromFile(mmcv.transforms.LoadImageFromFile):
    """mmcv's step with the same results, from a copy of the image if there is a valid one.

    Args:
        cache: copies of the data set; they hold what OpenCV decodes as 'color'.
        **kwargs: arguments of the stock step.
    """

    def __init__(self, *, cache: ImageCache, **kwargs) -> None:
        super().__init__(**kwargs)
        self.cache = cache

    def transform(self, results: dict) -> dict | None:
        image = self.cache.read(results['img_path'])
        if image is None:
            return super().transform(results)
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results


class LoadAnnotations(mmseg.datasets.transforms.LoadAnnotations):
    """MMSegmentation's step with the same results, from a copy of the label map.

    Args:
        cache: copies of the data set; they hold what Pillow decodes.
        **kwargs: arguments of the stock step.
    """

    def __init__(self, *, cache: ImageCache, **kwargs) -> None:
        super().__init__(**kwargs)
        self.cache = cache

    def _load_seg_map(self, results: dict) -> None:
        if self.reduce_zero_label is None:
            self.reduce_zero_label = results['reduce_zero_label']
        agrees = self.reduce_zero_label == results['reduce_zero_label']
        labels = self.cache.read(results['seg_map_path'], is_label=True) if agrees else None
        if labels is None:
            return super()._load_seg_map(results)
        if self.reduce_zero_label or results.get('label_map') is not None:
            labels = cv2.LUT(labels, label_table(self.reduce_zero_label, results.get('label_map')))
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')


def label_table(reduce_zero_label: bool, label_map: dict[int, int] | None) -> np.ndarray:
    """(256,) uint8: what MMSegmentation's `LoadAnnotations` makes of each label.

    Args:
        reduce_zero_label: whether label 0 becomes 255, and every other one less by 1.
        label_map: other classes, by label.
    """
    table = np.arange(256, dtype=np.uint8)
    if reduce_zero_label:
        table = np.array([255, *range(254), 255], np.uint8)
    mapped = table.copy()
    for old, new in (label_map or {}).items():
        mapped[table == old] = new
    return mapped
