"""Boxes and masks of detected objects on a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

if TYPE_CHECKING:
    from mmengine.structures import InstanceData

MIN_SIDE = 640  # pixels; pictures whose longer side is shorter are enlarged, for thin lines
_MASK_OPACITY = 0.4
_FONT = cv2.FONT_HERSHEY_SIMPLEX


class Objects(NamedTuple):
    """K objects in an image of H x W pixels.

    Attributes:
        boxes: (K, 4) x1, y1, x2, y2 in pixels.
        labels: (K,) class indices.
        scores: (K,) from 0 to 1; None for ground truth.
        masks: (K, H, W) bool; None without masks.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None
    masks: np.ndarray | None

    @classmethod
    def from_instances(cls, instances: 'InstanceData', min_score: float = 0.0) -> 'Objects':
        """mmdet's instances as arrays; predicted ones from `min_score` on, the highest first."""
        boxes = getattr(instances.bboxes, 'tensor', instances.bboxes).cpu().numpy()
        labels, scores = instances.labels.cpu().numpy(), instances.get('scores')
        masks = instances.get('masks')
        if masks is not None:  # a tensor, or mmdet's bitmaps or polygons
            masks = masks.cpu().numpy() if hasattr(masks, 'cpu') else masks.to_ndarray()
            masks = masks.astype(bool, copy=False)
        if scores is None:
            return cls(boxes, labels, None, masks)
        scores = scores.cpu().numpy()
        order = np.flatnonzero(scores >= min_score)
        order = order[np.argsort(-scores[order], kind='stable')]
        masks = None if masks is None else masks[order]
        return cls(boxes[order], labels[order], scores[order], masks)


def enlargement(image: np.ndarray, min_side: int = MIN_SIDE) -> float:
    """Factor, from 1, by which a small picture is enlarged before anything is drawn on it."""
    return max(1.0, min_side / max(image.shape[:2]))


def draw_objects(
    image: np.ndarray, objects: Objects, palette: Sequence[Sequence[int]]
) -> np.ndarray:
    """Draw each object in the colour of its class, with its score in percent.

    Masks are filled and outlined. Class names belong into a legend, as they would cover objects.
    Later objects lie below earlier ones.

    Args:
        image: (H, W, 3) uint8 BGR; unchanged.
        objects: the objects.
        palette: RGB colours of the classes.

    Returns:
        (s H, s W, 3) uint8 BGR, s = `enlargement(image)`.
    """
    boxes, labels, scores, masks = objects
    scale = enlargement(image)
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    picture = cv2.resize(image, size) if scale > 1 else image.copy()
    thick = max(1, round(max(size) / 800))
    edges = np.rint(boxes * scale).astype(int)
    colours = [tuple(int(c) for c in palette[label][::-1]) for label in labels]
    order = range(len(boxes) - 1, -1, -1)
    if masks is not None:
        for i in order:
            _draw_mask(picture, masks[i], scale, colours[i], thick)
    for i in order:
        x1, y1, x2, y2 = edges[i].tolist()
        cv2.rectangle(picture, (x1, y1), (x2, y2), colours[i], thick, cv2.LINE_AA)
    if scores is not None:
        for i in order:
            _write(picture, f'{100 * scores[i]:.0f}', edges[i], colours[i], max(size) / 2000)
    return picture


def _draw_mask(picture, mask, scale, colour, thick) -> None:
    """Fill the pixels of a mask and draw its outline, within its bounding box alone."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return
    (y1, y2), (x1, x2) = ((index[0], index[-1] + 1) for index in (rows, columns))
    inside = mask[y1:y2, x1:x2].astype(np.uint8)
    top, left = round(y1 * scale), round(x1 * scale)
    height, width = round(y2 * scale) - top, round(x2 * scale) - left
    if scale > 1:
        inside = cv2.resize(inside, (width, height), interpolation=cv2.INTER_NEAREST)
    part = picture[top : top + height, left : left + width]
    chosen = inside[: part.shape[0], : part.shape[1]] > 0
    blend = part[chosen] * (1 - _MASK_OPACITY) + np.array(colour) * _MASK_OPACITY
    part[chosen] = blend.astype(np.uint8)
    lines = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(picture, lines, -1, colour, thick, cv2.LINE_AA, offset=(left, top))


def _write(picture, text, box, colour, size) -> None:
    """Draw a text on a patch of the colour, above the upper left corner if there is room."""
    size = max(0.35, size)
    (width, height), below = cv2.getTextSize(text, _FONT, size, 1)
    x = min(max(0, int(box[0])), picture.shape[1] - width - 2)
    bottom = int(box[1]) if box[1] > height + below else int(box[1]) + height + below
    cv2.rectangle(picture, (x, bottom - height - below), (x + width + 1, bottom), colour, -1)
    dark = np.dot(colour, (0.114, 0.587, 0.299)) < 128
    ink = (255, 255, 255) if dark else (0, 0, 0)
    cv2.putText(picture, text, (x + 1, bottom - below + 1), _FONT, size, ink, 1, cv2.LINE_AA)
