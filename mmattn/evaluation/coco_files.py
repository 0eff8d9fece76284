"""COCO annotations and results for scoring: read, and checked for all that the evaluators read."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from reprlib import repr as show
from typing import Any

from pycocotools import mask

from mmattn.datasets.rle import check_rle
from mmattn.errors import DataError

from .reporting import print_message

IOU_TYPES = dict(bbox='bbox', segm='segmentation')  # key of the field that each compares
_MAX_SIDE = 65535  # px of an image: its pixels fit in the 32 bits of an RLE's counts
_MAX_NUMBER = 1e10  # largest coordinate, area or score; nan and inf are not below it


def read_json(path: str | Path) -> tuple[Any, dict[str, str]]:
    """Content of a JSON file, and its name and sha256.

    Raises:
        DataError: it does not exist, or is not valid JSON.
    """
    print_message(f'reading {path}')
    try:
        data = Path(path).read_bytes()
        return json.loads(data), dict(name=Path(path).name, sha256=hashlib.sha256(data).hexdigest())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DataError(
            f'{path} is no file: {error.strerror.lower()}. Name a JSON file.'
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f'{path} is not valid JSON: {error}. Write the file again.') from error


def read_annotations(
    content: Any, path: str | Path, iou_type: str
) -> tuple[dict, dict, list[dict]]:
    """Check COCO instances.

    Args:
        content: content of the file.
        path: the file, for messages.
        iou_type: key of `IOU_TYPES`.

    Returns:
        images by id, categories by id, and objects, with only the keys that the evaluators read.

    Raises:
        DataError: names the entry, its field and its value.
    """
    for key in 'images', 'categories', 'annotations':
        if not isinstance(content, dict) or key not in content:
            raise DataError(f'annotations {path}: {key!r} is missing. Name a COCO instances file.')

    def image(item: dict) -> dict:
        sides = {}
        if iou_type == 'segm':
            sides = {side: _integer(item, side, 1, _MAX_SIDE) for side in ('height', 'width')}
        return dict(id=_integer(item, 'id'), **sides)

    def category(item: dict) -> dict:
        return dict(id=_integer(item, 'id'), name=str(item['name']))

    def annotation(item: dict) -> dict:
        iscrowd = item.get('iscrowd', 0)
        if iscrowd not in (0, 1):
            raise ValueError(f'iscrowd is {show(iscrowd)}, allowed: 0 and 1')
        return dict(
            _locate(item, iou_type, images, categories),
            id=_integer(item, 'id'),
            area=_number(item, 'area'),
            iscrowd=int(iscrowd),
        )

    images = _entries_by_id(content, 'images', path, image)
    categories = dict(sorted(_entries_by_id(content, 'categories', path, category).items()))
    if not images or not categories:
        raise DataError(f'annotations {path}: no image or no category. Name another file.')
    annotations = _entries_by_id(content, 'annotations', path, annotation)
    return images, categories, list(annotations.values())


def read_results(
    content: Any, path: str | Path, iou_type: str, images: dict, categories: dict
) -> list[dict]:
    """Check COCO results; returns them with area, masks as compressed RLE.

    Args:
        content: content of the file.
        path: the file, for messages.
        iou_type: key of `IOU_TYPES`.
        images, categories: as `read_annotations` returns them.

    Raises:
        DataError: names the entry, its field and its value.
    """

    def detection(item: dict) -> dict:
        entry = _locate(item, iou_type, images, categories)
        if iou_type == 'bbox':
            area = entry['bbox'][2] * entry['bbox'][3]
        else:
            area = int(mask.area(entry['segmentation']))
        return dict(entry, score=_number(item, 'score'), area=area, iscrowd=0)

    return _entries(content, 'results', path, detection)


def share_outside(detections: list[dict], truth: dict) -> float:
    """The share of boxes that leave their image, among images of known size."""
    sizes = {i['id']: (i.get('width'), i.get('height')) for i in truth['images']}
    known = [d for d in detections if all(map(_is_number, sizes[d['image_id']]))]
    outside = 0
    for detection in known:
        (x, y, width, height), (right, bottom) = detection['bbox'], sizes[detection['image_id']]
        outside += x < -1 or y < -1 or x + width > right + 1 or y + height > bottom + 1
    return outside / len(known) if known else 0.0


def _entries_by_id(
    content: dict, name: str, path: str | Path, convert: Callable[[dict], dict]
) -> dict[int, dict]:
    entries = _entries(content[name], name, path, convert)
    by_id = {entry['id']: entry for entry in entries}
    if len(by_id) < len(entries):
        (ident, count), *_ = Counter(entry['id'] for entry in entries).most_common(1)
        raise DataError(f'{name} in {path}: id {ident} occurs {count} times. Give each its own.')
    return by_id


def _entries(
    items: Any, name: str, path: str | Path, convert: Callable[[dict], dict]
) -> list[dict]:
    """Convert each item; an error of `convert` becomes a DataError that names the item."""
    if not isinstance(items, list):
        raise DataError(f'{name} in {path}: {show(items)} is no list. Write the file again.')
    entries, num_strings = [], 0
    for index, item in enumerate(items):
        try:
            if not isinstance(item, dict):
                raise ValueError(f'{show(item)} is no object')
            for key in {'id', 'image_id', 'category_id'} & item.keys():
                if isinstance(item[key], str) and item[key].isdecimal():
                    item[key] = int(item[key])
                    num_strings += 1
            entries.append(convert(item))
        except (KeyError, ValueError) as error:
            reason = f'{error} is missing' if isinstance(error, KeyError) else error
            raise DataError(f'{name}[{index}] in {path}: {reason}. Correct the file.') from error
    if num_strings:
        print_message(
            f'warning: {name} in {path}: {num_strings} ids given as strings are read as integers.'
        )
    return entries


def _locate(item: dict, iou_type: str, images: dict, categories: dict) -> dict:
    """Image id, category id and shape of an annotation or a result."""
    for key, known in dict(image_id=images, category_id=categories).items():
        if _integer(item, key) not in known:
            raise ValueError(f'{key} is {item[key]}, allowed: {show(list(known))}')
    field = IOU_TYPES[iou_type]
    if field not in item:
        raise ValueError(f'{field!r} is missing, which iou type {iou_type} needs')
    image = images[item['image_id']]
    shape = _box(item[field]) if iou_type == 'bbox' else _rle(item[field], image)
    return {'image_id': image['id'], 'category_id': item['category_id'], field: shape}


def _integer(item: dict, field: str, low: int = 0, high: int = 10**18) -> int:
    value = item[field]
    if type(value) is not int or not low <= value <= high:  # a bool is not a number here
        raise ValueError(f'{field} is {show(value)}, allowed: integers {low}..{high:g}')
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _MAX_NUMBER


def _number(item: dict, field: str) -> float:
    if not _is_number(item[field]):
        raise ValueError(f'{field} is {show(item[field])}, allowed: numbers up to {_MAX_NUMBER:g}')
    return item[field]


def _box(box: Any) -> list[float]:
    valid = isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))
    if not valid or min(box[2:]) < 0:
        raise ValueError(f'bbox is {show(box)}, allowed: numbers x, y, width >= 0, height >= 0')
    return box


def _rle(segmentation: Any, image: dict) -> dict:
    """Compressed RLE of a mask: of polygons, uncompressed or compressed RLE."""
    height, width = size = [image['height'], image['width']]
    if isinstance(segmentation, list):
        _check_polygons(segmentation, height, width)
        return mask.merge(mask.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict) or not {'size', 'counts'} <= segmentation.keys():
        raise ValueError(
            f'segmentation is {show(segmentation)}, allowed: polygons, size and counts'
        )
    check_rle(segmentation, width, height)
    rle = dict(size=size, counts=segmentation['counts'])
    return rle if isinstance(rle['counts'], str) else mask.frPyObjects(rle, height, width)


def _check_polygons(polygons: list, height: int, width: int) -> None:
    """Raise unless each has corners, at most one side's length outside of the image."""
    if not polygons:
        raise ValueError('segmentation is an empty list, allowed: one polygon or more')
    for index, polygon in enumerate(polygons):
        if not isinstance(polygon, list):
            raise ValueError(f'polygon {index} is {show(polygon)}, allowed: a list of numbers')
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f'polygon {index} has {len(polygon)} coordinates, allowed: an even number from 6'
            )
        for side, values in (width, polygon[::2]), (height, polygon[1::2]):
            for value in values:
                if not _is_number(value) or not -side <= value <= 2 * side:
                    allowed = f'numbers {-side}..{2 * side}'
                    raise ValueError(f'polygon {index} holds {show(value)}, allowed: {allowed}')
