"""Steps of MMSegmentation's pipelines with equal results in less time."""

from typing import ClassVar

import cv2
import mmseg.datasets.transforms
import numpy as np
import torch
from mmcv.transforms.utils import cache_randomness
from mmengine.structures import PixelData

from mmattn.registry import TRANSFORMS

_MAX_EXACT = 1 << 24  # pixels: OpenCV's histogram is float32, which counts exactly up to here


@TRANSFORMS.register_module()
class RandomCrop(mmseg.datasets.transforms.RandomCrop):
    """MMSegmentation's random crop; with `cat_max_ratio` it counts labels by a histogram.

    The same crops from the same random numbers. Labels that are not uint8 are sorted, as in the
    stock step. Arguments are those of `mmseg.RandomCrop`.
    """

    # cache_randomness adds to the list of the class, which would be that of the stock step
    _methods_with_randomness: ClassVar[list[str]] = []

    @cache_randomness
    def crop_bbox(self, results: dict) -> tuple[int, int, int, int]:
        """Top, bottom, left and right of a crop, in pixels."""
        box = self._draw(results['img'])
        if self.cat_max_ratio >= 1:
            return box
        for _ in range(10):
            counts = self._count(self.crop(results['gt_seg_map'], box))
            if len(counts) > 1 and counts.max() / counts.sum() < self.cat_max_ratio:
                break
            box = self._draw(results['img'])
        return box

    def _draw(self, image: np.ndarray) -> tuple[int, int, int, int]:
        height, width = self.crop_size
        top = np.random.randint(0, max(image.shape[0] - height, 0) + 1)
        left = np.random.randint(0, max(image.shape[1] - width, 0) + 1)
        return top, top + height, left, left + width

    def _count(self, labels: np.ndarray) -> np.ndarray:
        """Pixels of each label that occurs and is not ignored."""
        if labels.dtype != np.uint8 or labels.ndim != 2 or not 0 < labels.size <= _MAX_EXACT:
            values, counts = np.unique(labels, return_counts=True)
            return counts[values != self.ignore_index]
        counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).astype(np.int64)[:, 0]
        if 0 <= self.ignore_index < 256:
            counts[self.ignore_index] = 0
        return counts[counts > 0]


class PackSegInputs(mmseg.datasets.transforms.PackSegInputs):
    """MMSegmentation's step, but label maps of 8 bits stay uint8, an eighth of int64.

    `mmattn.engine.labels` makes them int64 on the device of the network. Arguments are those of the
    stock step.
    """

    def transform(self, results: dict) -> dict:
        labels = results.get('gt_seg_map')
        if not isinstance(labels, np.ndarray) or labels.dtype != np.uint8 or labels.ndim != 2:
            return super().transform(results)
        packed = super().transform({k: v for k, v in results.items() if k != 'gt_seg_map'})
        data = torch.from_numpy(np.ascontiguousarray(labels))[None]
        packed['data_samples'].gt_sem_seg = PixelData(data=data)
        return packed
