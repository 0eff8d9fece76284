"""Checking the masks of a COCO instance file: polygons and run-length encodings."""

from itertools import chain
from reprlib import repr as show

import numpy as np

from mmattn.errors import DataError

from .coco_boxes import MAX_COORDINATE, to_floats
from .rle import check_rle

_CHUNK = 20000  # annotations whose polygons are checked together


def check_masks(
    annotations: list[dict],
    sizes: np.ndarray,
    *,
    masks: bool,
    poly2mask: bool,
    tolerant: bool,
    warnings: list[str],
) -> None:
    """Check the segmentations of annotations.

    Args:
        annotations: N annotations.
        sizes: (N, 2) width and height of their images.
        masks: whether each annotation must have a segmentation.
        poly2mask: argument of mmdet's `LoadAnnotations`.
        tolerant: whether polygons of too few or an odd number of coordinates are only counted.
        warnings: warnings are appended to it.

    Raises:
        DataError: a segmentation is missing or not valid.
    """
    num_short = num_clipped = 0
    for start in range(0, len(annotations), _CHUNK):
        polygons, owners = [], []
        for row, annotation in enumerate(annotations[start : start + _CHUNK], start):
            segmentation, ident = annotation.get('segmentation'), annotation['id']
            if not segmentation:
                if masks:
                    raise DataError(
                        f'annotation {ident}: no segmentation, but this config trains or scores '
                        'masks. Remove the annotation or set with_mask=False.'
                    )
            elif type(segmentation) is list:
                polygons += segmentation
                owners += [row] * len(segmentation)
            elif type(segmentation) is dict:
                try:
                    check_rle(segmentation, *sizes[row].astype(int).tolist())
                except ValueError as error:
                    raise DataError(
                        f'annotation {ident}: {error}. Correct or remove it.'
                    ) from error
                if masks and not poly2mask and not annotation.get('iscrowd'):
                    raise DataError(
                        f'annotation {ident}: its mask is RLE, which poly2mask=False drops. '
                        'Set poly2mask=True in LoadAnnotations.'
                    )
            else:
                raise DataError(
                    f'annotation {ident}: segmentation is {show(segmentation)}, expected polygons '
                    'or RLE.'
                )
        if polygons:
            short, clipped = _check_polygons(polygons, owners, annotations, sizes, tolerant)
            num_short, num_clipped = num_short + short, num_clipped + clipped
    if num_short:
        warnings.append(
            f'{num_short} polygons of under 6 or an odd number of coordinates are dropped.'
        )
    if num_clipped:
        warnings.append(f'{num_clipped} polygons leave their image and are clipped to it.')


def _check_polygons(
    polygons: list, owners: list[int], annotations: list[dict], sizes: np.ndarray, tolerant: bool
) -> tuple[int, int]:
    """Count the polygons that are too short, and those that leave their image.

    Args:
        polygons: lists of x, y in turn; those that are too short are replaced.
        owners: row of the annotation of each polygon.
        annotations, sizes, tolerant: as in `check_masks`.
    """

    def refuse(index: int, reason: str) -> None:
        ident, number = annotations[owners[index]]['id'], index - owners.index(owners[index])
        raise DataError(f'annotation {ident}: polygon {number} {reason}. Correct or remove it.')

    for index, polygon in enumerate(polygons):
        if type(polygon) is not list:
            refuse(index, f'is {show(polygon)}, expected a list of numbers')
    lengths = np.array(list(map(len, polygons)))
    short = np.flatnonzero((lengths < 6) | (lengths % 2 > 0))
    if short.size and not tolerant:
        refuse(short[0], f'has {lengths[short[0]]} coordinates, needs an even number ≥ 6')
    for index in short:
        polygons[index], lengths[index] = [0] * 6, 6  # passes the checks below
    ends = lengths.cumsum()
    values = to_floats(list(chain.from_iterable(polygons)))
    invalid = np.flatnonzero(~(np.abs(values) <= MAX_COORDINATE))
    if invalid.size:
        index = int(np.searchsorted(ends, invalid[0], side='right'))
        refuse(index, f'holds {show(polygons[index][invalid[0] - ends[index]])}')
    points, first = values.reshape(-1, 2), (ends - lengths) // 2
    steps = np.abs(np.diff(points, axis=0, append=0)).max(1)
    steps[ends // 2 - 1] = 0  # from one polygon to the next
    outline = np.add.reduceat(steps, first)
    if outline.max() > MAX_COORDINATE:
        refuse(int(outline.argmax()), f'has an outline of {outline.max():.0f} px')
    low, high = np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)
    return short.size, int(((low < -1) | (high > sizes[owners] + 1)).any(1).sum())
