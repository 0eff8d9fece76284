"""Boxes and masks of detected objects on a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from .palette import palette_of as palette_of

if TYPE_CHECKING:
    from mmengine.structures import InstanceData

LEAST = 640  # pixels that the longer side of a picture is enlarged to, so that lines stay thin
_FILL = 0.4  # opacity of masks
_FONT = cv2.FONT_HERSHEY_SIMPLEX


class Objects(NamedTuple):
    """K objects in an image of H x W pixels.

    Attributes:
        boxes: (K, 4) x1, y1, x2, y2 in pixels.
        labels: (K,) class indices.
        scores: (K,) from 0 to 1; None of what is true.
        masks: (K, H, W) bool; None where there are boxes alone.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None
    masks: np.ndarray | None

    @classmethod
    def of(cls, found: 'InstanceData', least: float = 0.0) -> 'Objects':
        """mmdet's instances, predicted ones with a score of `least` or more, as arrays."""
        boxes = getattr(found.bboxes, 'tensor', found.bboxes).cpu().numpy()
        labels, scores = found.labels.cpu().numpy(), found.get('scores')
        masks = found.get('masks')
        if masks is not None:  # a tensor, or mmdet's bitmaps or polygons
            masks = masks.cpu().numpy() if hasattr(masks, 'cpu') else masks.to_ndarray()
            masks = masks.astype(bool, copy=False)
        if scores is None:
            return cls(boxes, labels, None, masks)
        scores = scores.cpu().numpy()
        kept = np.flatnonzero(scores >= least)
        kept = kept[np.argsort(-scores[kept], kind='stable')]
        return cls(boxes[kept], labels[kept], scores[kept], None if masks is None else masks[kept])


def enlargement(image: np.ndarray, least: int = LEAST) -> float:
    """How many times a small picture is enlarged, from 1 on, before anything is drawn on it."""
    return max(1.0, least / max(image.shape[:2]))


def draw_objects(
    image: np.ndarray, objects: Objects, palette: Sequence[Sequence[int]]
) -> np.ndarray:
    """Draw each object in the colour of its class, with its score in percent.

    Masks are filled and have an outline, by which neighbours are told apart. No class names, which
    would cover what they name: they belong into a legend. Later objects lie below earlier ones.

    Args:
        image: (H, W, 3) uint8 BGR; unchanged.
        objects: what is drawn.
        palette: RGB colours of the classes.

    Returns:
        (s H, s W, 3) uint8 BGR, s of `enlargement`.
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
    (y1, y2), (x1, x2) = ((one[0], one[-1] + 1) for one in (rows, columns))
    inside = mask[y1:y2, x1:x2].astype(np.uint8)
    top, left = round(y1 * scale), round(x1 * scale)
    height, width = round(y2 * scale) - top, round(x2 * scale) - left
    if scale > 1:
        inside = cv2.resize(inside, (width, height), interpolation=cv2.INTER_NEAREST)
    part = picture[top : top + height, left : left + width]
    chosen = inside[: part.shape[0], : part.shape[1]] > 0
    part[chosen] = (part[chosen] * (1 - _FILL) + np.array(colour) * _FILL).astype(np.uint8)
    lines = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(picture, lines, -1, colour, thick, cv2.LINE_AA, offset=(left, top))


def _write(picture, text, box, colour, size) -> None:
    """Write a word on a patch of the colour, above the upper left corner where there is room."""
    size = max(0.35, size)
    (width, height), below = cv2.getTextSize(text, _FONT, size, 1)
    x = min(max(0, int(box[0])), picture.shape[1] - width - 2)
    bottom = int(box[1]) if box[1] > height + below else int(box[1]) + height + below
    cv2.rectangle(picture, (x, bottom - height - below), (x + width + 1, bottom), colour, -1)
    dark = np.dot(colour, (0.114, 0.587, 0.299)) < 128
    ink = (255, 255, 255) if dark else (0, 0, 0)
    cv2.putText(picture, text, (x + 1, bottom - below + 1), _FONT, size, ink, 1, cv2.LINE_AA)
