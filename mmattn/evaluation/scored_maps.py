"""Scores of single label maps, for a report, which shows the worst of them."""

from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from .iou import areas

if TYPE_CHECKING:
    import torch

_LEVEL = [cv2.IMWRITE_PNG_COMPRESSION, 1]  # fast; label maps shrink well at any level


class ScoredMap(NamedTuple):
    """Score of the label map that is predicted for one image.

    Attributes:
        path: path of the image.
        iou: mean IoU, from 0 to 1, of the classes in its label map or its prediction; nan without
            a labelled pixel.
        accuracy: share of its labelled pixels that are right; nan without any.
        prediction, truth: (H, W) class indices as PNG, the largest value for none; None if they are
            not kept.
    """

    path: str
    iou: float
    accuracy: float
    prediction: bytes | None = None
    truth: bytes | None = None

    def with_maps(self, sample: dict, prediction: 'torch.Tensor', count: int) -> 'ScoredMap':
        """The same with the label maps of a sample.

        Args:
            sample: the sample, as metrics get it, with `gt_sem_seg`.
            prediction: (H, W) class indices.
            count: number of classes.
        """
        truth = sample['gt_sem_seg']['data'].squeeze()
        prediction_png, truth_png = (_encoded(values, count) for values in (prediction, truth))
        return self._replace(prediction=prediction_png, truth=truth_png)

    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and truth, (H, W) class indices, of an image whose maps are kept."""
        pair = (np.frombuffer(data, np.uint8) for data in (self.prediction, self.truth))
        prediction, truth = (cv2.imdecode(data, cv2.IMREAD_UNCHANGED) for data in pair)
        return prediction, truth


def score_map(sample: dict, matrix: np.ndarray) -> ScoredMap:
    """The score of one image, without its maps.

    Args:
        sample: the sample, as metrics get it.
        matrix: its confusion matrix, see `iou.confusion`.
    """
    intersection, union, _, label = areas(matrix)
    present, labelled = union > 0, label.sum()
    iou = float((intersection[present] / union[present]).mean()) if labelled else float('nan')
    accuracy = float(intersection.sum() / labelled) if labelled else float('nan')
    return ScoredMap(str(sample.get('img_path', 'an image')), iou, accuracy)


def worst_maps(images: list[ScoredMap], count: int) -> list[ScoredMap]:
    """The images with the lowest IoU among those whose maps are kept, the lowest first."""
    kept = [image for image in images if image.prediction is not None]
    return sorted(kept, key=lambda image: image.iou)[:count]


def _encoded(values: Any, count: int) -> bytes:
    """A label map as PNG of 8 bits, or 16 for many classes; what is no class is the maximum."""
    array = np.asarray(values.cpu()).astype(np.int64)
    kind = np.uint8 if count < 256 else np.uint16
    array = np.where((array < 0) | (array >= count), np.iinfo(kind).max, array)
    return cv2.imencode('.png', array.astype(kind), _LEVEL)[1].tobytes()
