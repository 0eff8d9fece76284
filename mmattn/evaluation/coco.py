"""COCO's numbers for detections saved as JSON, without a model.

pycocotools or faster_coco_eval counts; both crash, hang or answer wrongly on much of what a file
can hold, so all that they read is checked here first.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from reprlib import repr as short
from typing import Any

from pycocotools import mask

from mmattn.datasets.rle import check_rle
from mmattn.errors import DataError, UsageError

from .match_names import by_name
from .scores_file import check_target, write_scores

IOU_TYPES = dict(bbox='bbox', segm='segmentation')  # the field that each compares
BACKENDS = 'auto', 'pycocotools', 'faster_coco_eval'
NUMBERS = (
    *('AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large'),
    *('AR_1', 'AR_10', 'AR_100', 'AR_small', 'AR_medium', 'AR_large'),
)
_LONGEST_SIDE = 65535  # of an image: pixels fit in the 32 bits of an RLE's counts
_MANY = 0.2  # of boxes that leave their image: more, and they are not what they should be
_LARGEST = 1e10  # of a coordinate, area or score; nan and inf are not below it


@dataclass(frozen=True)
class Scores:
    """Fractions 0..1, and -1 where the annotations have nothing to score.

    Attributes:
        numbers: COCO's twelve, named and ordered as `NUMBERS`.
        per_class: `AP.<category>`, with the id where categories share a name.
        iou_type: 'bbox' or 'segm'.
        backend: the library that counted.
        version: of that library.
        files: name and sha256 of the annotations and of the results.
    """

    numbers: dict[str, float]
    per_class: dict[str, float]
    iou_type: str
    backend: str
    version: str
    files: dict[str, dict[str, str]]


def evaluate_coco(
    annotations: str | Path, results: str | Path, *, iou_type: str = 'bbox', backend: str = 'auto'
) -> Scores:
    """Score results over all images of the annotations, those without a result included.

    Polygons and uncompressed RLE count as the masks they draw; areas of 'segm' are the masks',
    whether or not a result has a box. Ids written as strings of digits are read as integers. Ids of
    tools/infer.py are its own: `images.json` beside its results says which images and categories
    they are, and these are found in the annotations by name.

    Args:
        annotations: a COCO instances file.
        results: a COCO results file, a list of `image_id, category_id, score` and `bbox` (x, y,
            width, height in pixels) or `segmentation`.
        iou_type: 'bbox' compares boxes, 'segm' masks.
        backend: 'auto' is faster_coco_eval where it is installed, else pycocotools.

    Raises:
        DataError: a file is missing or not valid; names the entry, its field and its value.
        UsageError: another iou_type or backend; faster_coco_eval is asked for and not installed.
    """
    if iou_type not in IOU_TYPES:
        raise UsageError(f'{iou_type=}, allowed: {", ".join(IOU_TYPES)}.')
    name, coco, evaluator = _backend(backend)
    (truth, truth_file), (found, found_file) = _read(annotations), _read(results)
    found, says = by_name(found, results, truth, annotations)
    for text in says:
        _say(text)
    images, categories, objects = _truth(truth, annotations, iou_type)
    detections = _detections(found, results, iou_type, images, categories)
    _say(f'scoring {len(detections)} results on {len(images)} images with {name}')
    if not detections:
        _say(f'warning: {results} has no results, so nothing is found.')
    leaving = _leaving(detections, truth) if iou_type == 'bbox' else 0
    if leaving > _MANY:
        _say(
            f'warning: {leaving:.0%} of the boxes in {results} leave their image; are they x1, y1, '
            'x2, y2 instead of x, y, width, height?'
        )
    with redirect_stdout(StringIO()):  # tables of their own
        pair = [_index(coco, images, categories, entries) for entries in (objects, detections)]
        run = evaluator(*pair, iou_type)
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = run.eval['precision'][..., 0, -1]  # (IoU, recall, category): all areas, 100 results
    return Scores(
        numbers=dict(zip(NUMBERS, map(float, run.stats))),
        per_class={
            f'AP.{label}': float(value)
            for label, value in zip(_labels(categories), precision.mean((0, 1)))
        },
        iou_type=iou_type,
        backend=name,
        version=version(name),
        files=dict(annotations=truth_file, results=found_file),
    )


def report(
    annotations: str | Path,
    results: str | Path,
    *,
    iou_type: str = 'bbox',
    backend: str = 'auto',
    json_path: str | Path | None = None,
) -> Scores:
    """Print what `evaluate_coco` returns, and write it to a JSON file if asked.

    Raises:
        DataError, UsageError: as `evaluate_coco`.
        WriteError: the file cannot be written.
    """
    check_target(json_path, (annotations, results, Path(results).with_name('images.json')))
    scores = evaluate_coco(annotations, results, iou_type=iou_type, backend=backend)
    write_scores(json_path, asdict(scores))
    for part in scores.numbers, scores.per_class:
        for label, value in part.items():
            print(f'{label:<24s} {value:.6f}' if value >= 0 else f'{label:<24s} -1')
        print()
    print(f'{iou_type}, counted by {scores.backend} {scores.version}')
    return scores


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _backend(name: str) -> tuple[str, type, type]:
    """Name, index and evaluator of the library that counts."""
    if name not in BACKENDS:
        raise UsageError(f'backend={name!r}, allowed: {", ".join(BACKENDS)}.')
    if name != 'pycocotools':
        try:
            from faster_coco_eval import COCO, COCOeval_faster

            return 'faster_coco_eval', COCO, COCOeval_faster
        except ImportError as error:
            if name != 'auto':
                raise UsageError(
                    f'backend {name} cannot be imported: {error}. '
                    'Run: pip install faster-coco-eval, or take pycocotools.'
                ) from error
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return 'pycocotools', COCO, COCOeval


def _index(coco: type, images: dict, categories: dict, entries: list[dict]) -> Any:
    """The library's index. Ids of the entries count from 1: 0 would say that nothing matched."""
    made = coco()
    made.dataset = dict(
        images=list(images.values()),
        categories=list(categories.values()),
        annotations=[entry | dict(id=number) for number, entry in enumerate(entries, 1)],
    )
    made.createIndex()
    return made


def _labels(categories: dict[int, dict]) -> list[str]:
    names = Counter(c['name'] for c in categories.values())
    return [
        c['name'] if names[c['name']] == 1 else f'{c["name"]} (id {c["id"]})'
        for c in categories.values()
    ]


# ---- reading and checking ------------------------------------------------------------------------
def _read(path: str | Path) -> tuple[Any, dict[str, str]]:
    """Content of a JSON file, and its name and sha256."""
    _say(f'reading {path}')
    try:
        data = Path(path).read_bytes()
        return json.loads(data), dict(name=Path(path).name, sha256=hashlib.sha256(data).hexdigest())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DataError(
            f'{path} is no file: {error.strerror.lower()}. Name a JSON file.'
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f'{path} is not valid JSON: {error}. Write the file again.') from error


def _truth(content: Any, path: str | Path, iou_type: str) -> tuple[dict, dict, list[dict]]:
    """Images by id, categories by id, and objects, with only what the evaluators read."""
    for key in 'images', 'categories', 'annotations':
        if not isinstance(content, dict) or key not in content:
            raise DataError(f'annotations {path}: {key!r} is missing. Name a COCO instances file.')

    def image(item: dict) -> dict:
        sides = {}
        if iou_type == 'segm':
            sides = {side: _whole(item, side, 1, _LONGEST_SIDE) for side in ('height', 'width')}
        return dict(id=_whole(item, 'id'), **sides)

    def category(item: dict) -> dict:
        return dict(id=_whole(item, 'id'), name=str(item['name']))

    def annotation(item: dict) -> dict:
        crowd = item.get('iscrowd', 0)
        if crowd not in (0, 1):
            raise ValueError(f'iscrowd is {short(crowd)}, allowed: 0 and 1')
        return dict(
            _located(item, iou_type, images, categories),
            id=_whole(item, 'id'),
            area=_number(item, 'area'),
            iscrowd=int(crowd),
        )

    images = _by_id(content, 'images', path, image)
    categories = dict(sorted(_by_id(content, 'categories', path, category).items()))
    if not images or not categories:
        raise DataError(f'annotations {path}: no image or no category. Name another file.')
    return images, categories, list(_by_id(content, 'annotations', path, annotation).values())


def _detections(
    content: Any, path: str | Path, iou_type: str, images: dict, categories: dict
) -> list[dict]:
    """The results with area, and as compressed RLE where masks are compared."""

    def detection(item: dict) -> dict:
        made = _located(item, iou_type, images, categories)
        if iou_type == 'bbox':
            area = made['bbox'][2] * made['bbox'][3]
        else:
            area = int(mask.area(made['segmentation']))
        return dict(made, score=_number(item, 'score'), area=area, iscrowd=0)

    return _entries(content, 'results', path, detection)


def _leaving(detections: list[dict], truth: dict) -> float:
    """The share of boxes that leave their image, of those whose image says its size."""
    sizes = {i['id']: (i.get('width'), i.get('height')) for i in truth['images']}
    known = [d for d in detections if all(map(_is_number, sizes[d['image_id']]))]
    out = 0
    for one in known:
        (x, y, width, height), (right, lower) = one['bbox'], sizes[one['image_id']]
        out += x < -1 or y < -1 or x + width > right + 1 or y + height > lower + 1
    return out / len(known) if known else 0.0


def _by_id(
    content: dict, name: str, path: str | Path, convert: Callable[[dict], dict]
) -> dict[int, dict]:
    entries = _entries(content[name], name, path, convert)
    found = {entry['id']: entry for entry in entries}
    if len(found) < len(entries):
        (twice, count), *_ = Counter(entry['id'] for entry in entries).most_common(1)
        raise DataError(f'{name} in {path}: id {twice} occurs {count} times. Give each its own.')
    return found


def _entries(
    items: Any, name: str, path: str | Path, convert: Callable[[dict], dict]
) -> list[dict]:
    """Each item converted; what `convert` refuses is a DataError that says where."""
    if not isinstance(items, list):
        raise DataError(f'{name} in {path}: {short(items)} is no list. Write the file again.')
    made, texts = [], 0
    for index, item in enumerate(items):
        try:
            if not isinstance(item, dict):
                raise ValueError(f'{short(item)} is no object')
            for key in {'id', 'image_id', 'category_id'} & item.keys():
                if isinstance(item[key], str) and item[key].isdecimal():
                    item[key] = int(item[key])
                    texts += 1
            made.append(convert(item))
        except (KeyError, ValueError) as error:
            why = f'{error} is missing' if isinstance(error, KeyError) else error
            raise DataError(f'{name}[{index}] in {path}: {why}. Correct the file.') from error
    if texts:
        _say(f'warning: {name} in {path}: {texts} ids given as strings are read as integers.')
    return made


def _located(item: dict, iou_type: str, images: dict, categories: dict) -> dict:
    """Image, category and shape of an annotation or a result."""
    for key, known in dict(image_id=images, category_id=categories).items():
        if _whole(item, key) not in known:
            raise ValueError(f'{key} is {item[key]}, allowed: {short(list(known))}')
    field = IOU_TYPES[iou_type]
    if field not in item:
        raise ValueError(f'{field!r} is missing, which iou type {iou_type} needs')
    image = images[item['image_id']]
    shape = _box(item[field]) if iou_type == 'bbox' else _rle(item[field], image)
    return {'image_id': image['id'], 'category_id': item['category_id'], field: shape}


def _whole(item: dict, field: str, low: int = 0, high: int = 10**18) -> int:
    value = item[field]
    if type(value) is not int or not low <= value <= high:  # a bool is no number here
        raise ValueError(f'{field} is {short(value)}, allowed: integers {low}..{high:g}')
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST


def _number(item: dict, field: str) -> float:
    if not _is_number(item[field]):
        raise ValueError(f'{field} is {short(item[field])}, allowed: numbers up to {_LARGEST:g}')
    return item[field]


def _box(box: Any) -> list[float]:
    sound = isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))
    if not sound or min(box[2:]) < 0:
        raise ValueError(f'bbox is {short(box)}, allowed: numbers x, y, width >= 0, height >= 0')
    return box


def _rle(segmentation: Any, image: dict) -> dict:
    """Compressed RLE of polygons, of uncompressed or of compressed RLE."""
    height, width = size = [image['height'], image['width']]
    if isinstance(segmentation, list):
        _check_polygons(segmentation, height, width)
        return mask.merge(mask.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict) or not {'size', 'counts'} <= segmentation.keys():
        raise ValueError(
            f'segmentation is {short(segmentation)}, allowed: polygons, size and counts'
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
            raise ValueError(f'polygon {index} is {short(polygon)}, allowed: a list of numbers')
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f'polygon {index} has {len(polygon)} coordinates, allowed: an even number from 6'
            )
        for side, values in (width, polygon[::2]), (height, polygon[1::2]):
            for value in values:
                if not _is_number(value) or not -side <= value <= 2 * side:
                    allowed = f'numbers {-side}..{2 * side}'
                    raise ValueError(f'polygon {index} holds {short(value)}, allowed: {allowed}')
