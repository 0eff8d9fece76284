"""Checking the boxes of a COCO instance file."""

from collections.abc import Callable
from itertools import chain
from reprlib import repr as show

import numpy as np

from mmattn.errors import DataError

MAX_COORDINATE = 5e6  # px; pycocotools takes up to 160 bytes for a pixel of an outline


def to_floats(values: list) -> np.ndarray:
    """Values as float64; nan for everything that is not a number, booleans included."""
    try:
        if set(map(type, values)) <= {int, float}:
            return np.array(values, np.float64)
    except OverflowError:  # an integer beyond float64
        pass
    return np.array([v if type(v) in (int, float) and abs(v) < 1e300 else np.nan for v in values])


def check_boxes(
    annotations: list[dict],
    sizes: np.ndarray,
    refuse_or_warn: Callable,
    warnings: list[str],
    allowed_iscrowd: tuple = (0, 1),
) -> np.ndarray:
    """Check the boxes of annotations.

    Args:
        annotations: N annotations.
        sizes: (N, 2) width and height of their images.
        refuse_or_warn: called with a text, and `tolerated`, about the boxes that mmdet drops.
        warnings: warnings are appended to it.
        allowed_iscrowd: values that `iscrowd` may have.

    Returns:
        (N,) whether mmdet keeps each box.

    Raises:
        DataError: a value is not valid.
    """
    boxes = [a['bbox'] for a in annotations]
    for annotation, box in zip(annotations, boxes):
        if type(box) is not list or len(box) != 4:
            raise DataError(
                f'annotation {annotation["id"]}: bbox is {show(box)}, expected [x, y, w, h].'
            )
        if annotation.get('iscrowd', 0) not in allowed_iscrowd:
            iscrowd = show(annotation['iscrowd'])
            raise DataError(f'annotation {annotation["id"]}: iscrowd is {iscrowd}, allowed 0, 1.')
    values = to_floats(list(chain.from_iterable(boxes)))
    invalid = np.flatnonzero(~(np.abs(values) <= MAX_COORDINATE))
    if invalid.size:
        row, column = divmod(int(invalid[0]), 4)
        raise DataError(
            f'annotation {annotations[row]["id"]}: bbox[{column}] is {show(boxes[row][column])}. '
            'Correct or remove it.'
        )
    areas = to_floats([a['area'] for a in annotations])
    invalid = np.flatnonzero(~np.isfinite(areas))
    if invalid.size:
        annotation = annotations[invalid[0]]
        raise DataError(
            f'annotation {annotation["id"]}: area is {show(annotation["area"])}. Correct it.'
        )
    if not annotations:
        return areas > 0
    start, extent = values.reshape(-1, 4)[:, :2], values.reshape(-1, 4)[:, 2:]  # (N, 2) each
    end = start + extent
    leaving = ((start < -1) | (end > sizes + 1)).any(1).mean()
    if leaving > 0.2:
        warnings.append(
            f'{leaving:.0%} of boxes leave their image; are they x1,y1,x2,y2 instead of x,y,w,h?'
        )
    faults = {
        'empty': (extent <= 0).any(1),
        'outside': ((end <= 0) | (start >= sizes)).any(1),
        'under 1 px wide or high': (extent < 1).any(1),
        'of area 0': areas <= 0,
    }
    valid, counts = np.ones(len(boxes), bool), []
    for fault, faulty in faults.items():
        faulty &= valid
        valid &= ~faulty
        if faulty.any():
            counts.append(f'{faulty.sum()} {fault}')
    if counts:
        dropped = len(boxes) - valid.sum()
        refuse_or_warn(
            f'{dropped} of {len(boxes)} boxes are dropped: {", ".join(counts)}, e.g. that of '
            f'annotation {annotations[valid.argmin()]["id"]}. Correct or remove them.',
            tolerated=dropped <= 0.01 * len(boxes),
        )
    return valid
