"""Checking COCO instance files before anything reads them, and a download of COCO.

mmdet drops or relabels without a word what does not fit, and pycocotools crashes on it or takes
foreign memory for a mask. What passes here is safe for both.
"""

import codecs
import gc
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from reprlib import repr as show

import numpy as np

from mmattn.errors import DataError

from . import (
    annotation_filter as held,
)
from . import (
    coco_images,
)
from . import (
    fix_commands as mending,
)
from . import (
    image_io as files,
)
from . import (
    validation as check,
)
from .loading_steps import Loading
from .rle import run_lengths

# Images per split; cocodataset.org, "2017 Train images" and "2017 Val images".
COUNTS = {'train': 118287, 'val': 5000}
PACKAGES = 'train2017.zip, val2017.zip and annotations_trainval2017.zip of cocodataset.org'

_VERSION = 3  # of the check: a verdict of another version does not count
_FAR = 5e6  # px; pycocotools takes up to 160 bytes for a pixel of an outline
KEYS = {
    'images': {'id', 'file_name', 'width', 'height'},
    'annotations': {'id', 'image_id', 'category_id', 'bbox', 'area'},
    'categories': {'id', 'name'},
}
_IDS = dict(image_id='images', category_id='categories')  # and where they are defined
_INTEGERS = {'id', 'image_id', 'category_id', 'width', 'height'}
_CHUNK = 20000  # annotations whose polygons are looked at together


def check_coco(
    annotations: str | Path,
    images: str | Path,
    *,
    classes: tuple[str, ...] | None = None,
    masks: bool = False,
    segmentations: bool = True,
    poly2mask: bool = True,
    train: bool = False,
    lenient: bool = False,
    part: bool = False,
    scored: bool = True,
    where: str = '',
    loading: Loading | None = None,
) -> list[str]:
    """Check a COCO instance file and its photographs; a verdict without error is cached.

    Args:
        annotations: the JSON file.
        images: the folder that its file names start from.
        classes: those of the config; None takes every category of the file.
        masks: whether the config trains or scores masks.
        segmentations: whether they are looked at; no detector of boxes reads them.
        poly2mask: that of mmdet's `LoadAnnotations`.
        train: whether the set is trained on, not scored.
        lenient: what the loader drops is a warning, however much it is.
        part: whether it is trained on with other sets, so that it may hold no object.
        scored: whether its objects are scored; the file of a benchmark's test set has none.
        where: the key of the data set in the config, for the messages.
        loading: how the config loads an image; by default as `LoadImageFromFile` does.

    Returns:
        warnings, a sentence each.

    Raises:
        DataError: names file, id and field, and what to do.
    """
    file, folder = Path(annotations), Path(images)
    name = f'{file} ({where})' if where else str(file)
    if not file.is_file():
        raise DataError(f'{name} does not exist. Set ann_file and data_root.')
    if not folder.is_dir():
        raise DataError(
            f'{name}: the folder of its images, {folder}, does not exist. Set data_prefix.'
        )
    classes = None if classes is None else tuple(classes)
    loading = loading or Loading([])
    options = dict(
        classes=classes,
        masks=masks,
        segmentations=segmentations or masks,
        poly2mask=poly2mask,
        train=train,
        lenient=lenient,
        part=part,
        scored=scored or train,
    )
    data = file.read_bytes()
    digest = hashlib.sha256(data)
    reading = loading.describe(), files.max_megapixels()
    digest.update(repr((_VERSION, os.path.abspath(folder), options, reading)).encode())
    cache = check.CACHE / f'{digest.hexdigest()[:32]}.json'
    warnings = _kept(cache, folder)
    if warnings is None:
        collecting = gc.isenabled()
        gc.disable()  # it would walk through millions of new objects again and again
        try:
            coco = parse(data, name)
            warnings = _check(coco, file, folder, loading, **options)
        except DataError as error:
            raise DataError(f'{name}: {error}') from error
        finally:
            if collecting:
                gc.enable()
        _keep(cache, folder, [image['file_name'] for image in coco['images']], warnings)
    return [f'{name}: {warning}' for warning in warnings]


def _kept(cache: Path, folder: Path) -> list[str] | None:
    """The warnings of an earlier check, if no image has changed since."""
    try:
        kept = json.loads(cache.read_text())
        return kept['warnings'] if _state(folder, kept['images']) == kept['state'] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(cache: Path, folder: Path, names: list[str], warnings: list[str]) -> None:
    kept = dict(folder=str(folder), warnings=warnings, state=_state(folder, names), images=names)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(kept))
    except OSError:
        pass  # nowhere to keep it: the next run checks again


def _state(folder: Path, names: list[str]) -> str:
    return check.fingerprint([tuple(os.path.join(folder, name) for name in names)], [])


def parse(data: bytes, name: str) -> dict:
    data = data.removeprefix(codecs.BOM_UTF8)  # which Windows editors write
    if len(data) > 5e7:
        print(f'reading and checking {name}, {len(data) / 1e6:.0f} MB', file=sys.stderr, flush=True)
    try:
        coco = json.loads(data.decode())
    except json.JSONDecodeError as error:
        at = len(error.doc[: error.pos].encode())
        raise DataError(f'not valid JSON at byte {at}: {error.msg}. Get it again.') from error
    except (ValueError, RecursionError) as error:
        raise DataError(f'not valid JSON: {error}. Get it again.') from error
    if type(coco) is not dict:
        raise DataError(f'its top level is {show(coco)}, expected an object of lists.')
    return coco


def _check(
    coco: dict,
    file: Path,
    folder: Path,
    loading: Loading,
    *,
    classes: tuple[str, ...] | None,
    masks: bool,
    segmentations: bool,
    poly2mask: bool,
    train: bool,
    lenient: bool,
    part: bool,
    scored: bool,
) -> list[str]:
    warnings = []

    def doubt(text: str, *, tolerated: bool = False) -> None:
        if not (tolerated or lenient):
            raise DataError(text)
        warnings.append(text)

    check_instances(coco)
    if not train and 'annotations' not in coco and 'images' in coco:
        if scored:
            raise DataError(
                "'annotations' is missing, so there is nothing to score. Set ann_file to a file "
                'that has them; a test may have test_evaluator.format_only=True and outfile_prefix.'
            )
        coco = dict(coco, annotations=[])
    images, annotations, categories = (read_entries(coco, kind) for kind in KEYS)
    if not images:
        raise DataError('it lists no image. Get it again.')
    chosen = _chosen(categories, classes, file)
    _check_names(images, warnings)
    place = {image['id']: i for i, image in enumerate(images)}
    lost = [a for a in annotations if a['image_id'] not in place]
    if lost:
        doubt(
            f'annotation {lost[0]["id"]} refers to image {lost[0]["image_id"]}, which does not '
            f'exist ({len(lost)} such annotations). Remove them or add the images.'
        )
        annotations = [a for a in annotations if a['image_id'] in place]
    used = Counter(a['category_id'] for a in annotations)
    undefined = sorted(used.keys() - {c['id'] for c in categories}, key=str)
    if undefined:
        number = sum(used[i] for i in undefined)
        raise DataError(
            f'category ids {", ".join(map(str, undefined[:5]))} are used by {number} annotations '
            'but not defined. Add them to categories.'
        )
    without = [a['id'] for a in annotations if 'iscrowd' not in a]
    if without and scored and not train:  # mmdet trains with 0 for it, pycocotools has no default
        raise DataError(
            f"annotation {without[0]}: missing 'iscrowd', which scoring reads ({len(without)} such "
            'annotations). Add 0.'
        )
    if without:
        warnings.append(
            f"{len(without)} annotations, e.g. {without[0]}, have no 'iscrowd': 0 is taken."
        )
    rows = [place[a['image_id']] for a in annotations]
    sizes = np.array([(i['width'], i['height']) for i in images], np.float64)[rows]
    # mmdet trains with 0 for null, pycocotools fails on it
    crowds = (0, 1, None) if train else (0, 1)
    kept = _check_boxes(annotations, sizes, doubt, warnings, crowds)
    reasons = held.reasons(annotations, kept.tolist(), chosen)
    if not reasons[held.LEARNT]:
        if train and not part:
            raise DataError(
                f'no training image left: {len(images)} images, {len(images)} without a box of the '
                f'{len(chosen)} classes to learn from ({held.listed(reasons)}). '
                f'{held.remedy(reasons)}'
            )
        if reasons[held.CROWD] or reasons[held.IGNORED]:
            warnings.append(f'nothing to score: {held.listed(reasons)}. {held.remedy(reasons)}')
    if segmentations:
        _check_masks(
            annotations,
            sizes,
            masks=masks,
            poly2mask=poly2mask,
            # the loader drops a bad polygon, pycocotools' scoring of masks crashes on it
            tolerant=(masks and train) or (lenient and not masks),
            warnings=warnings,
        )
    coco_images.check_files(images, folder, file, loading)
    return warnings


def why_dropped(coco: dict, classes: tuple[str, ...] | None) -> Counter:
    """How many annotations of a sound file mmdet learns from or drops, by reason."""
    images, annotations, categories = (read_entries(coco, kind) for kind in KEYS)
    names = {c['id'] for c in categories if classes is None or c['name'] in classes}
    place = {image['id']: (image['width'], image['height']) for image in images}
    annotations = [a for a in annotations if a['image_id'] in place]
    sizes = np.array([place[a['image_id']] for a in annotations], np.float64)
    kept = _check_boxes(annotations, sizes, lambda *_, **__: None, [], (0, 1, None))
    return held.reasons(annotations, kept.tolist(), names)


def check_instances(coco: dict) -> None:
    """Refuse a file of panoptic segments, which has other keys.

    Raises:
        DataError: says where instances are.
    """
    annotations = coco.get('annotations')
    first = annotations[0] if type(annotations) is list and annotations else None
    if type(first) is dict and 'segments_info' in first:
        raise DataError(
            "its annotations have 'segments_info', as panoptic ones do, but the data set reads "
            'instances. Set ann_file to the file of instances, or type to CocoPanopticDataset '
            'with data_prefix.seg.'
        )


def read_entries(coco: dict, kind: str) -> list[dict]:
    """The list of one kind, each entry with its keys, integers where they belong, ids unique.

    All ids of a kind may be texts, which mmdet trains on.
    """
    entries, keys = coco.get(kind), KEYS[kind]
    texts = {k for k in ('id', *_IDS) if k in keys and _are_texts(coco.get(_IDS.get(k, kind)))}
    integers = keys & _INTEGERS
    if type(entries) is not list:
        why = f'is {show(entries)}, expected a list' if kind in coco else 'is missing'
        raise DataError(f'{kind!r} {why}. Is this a file of COCO instances?')
    for i, entry in enumerate(entries):
        if type(entry) is not dict:
            raise DataError(f'{kind}[{i}] is {show(entry)}, expected an object.')
        if not keys <= entry.keys():
            ident = f' (id {show(entry["id"])})' if 'id' in entry else ''
            raise DataError(f'{kind}[{i}]{ident}: missing {min(keys - entry.keys())!r}. Add it.')
        for key in integers:
            value = entry[key]
            if key in texts and type(value) is str:
                continue
            # pycocotools keeps ids as float64
            if type(value) is not int or abs(value) >= 2**53:
                raise DataError(
                    f'{kind}[{i}] (id {show(entry["id"])}): {key} is {show(value)}, expected an '
                    'integer.'
                )
    counts = Counter(entry['id'] for entry in entries)
    if len(counts) < len(entries):
        ident, count = counts.most_common(1)[0]
        raise DataError(f'{kind}: id {ident} occurs {count} times. Give each its own.')
    return entries


def _are_texts(entries) -> bool:
    """Whether the id of each entry is a text."""
    return (
        type(entries) is list
        and bool(entries)
        and all(type(entry) is dict and type(entry.get('id')) is str for entry in entries)
    )


def _chosen(categories: list[dict], classes: tuple[str, ...] | None, file: Path) -> set[int]:
    """The ids of the classes. mmdet numbers them in the file's order, whatever the config's is."""
    names = [c['name'] for c in categories]
    wrong = next((c for c in categories if type(c['name']) is not str), None)
    if wrong:
        raise DataError(f'category {wrong["id"]}: name is {show(wrong["name"])}, expected a text.')
    classes = tuple(names) if classes is None else classes
    twice = [name for name, count in Counter(names).items() if count > 1 and name in classes]
    if twice:
        raise DataError(f'category name {twice[0]!r} occurs {names.count(twice[0])} times. Rename.')
    absent = tuple(name for name in classes if name not in names)
    if absent:
        raise DataError(
            f'classes {absent} not in file; file has {tuple(names)}. Correct metainfo.classes.'
        )
    order = tuple(name for name in names if name in classes)
    if order != classes:
        raise DataError(
            f'classes {classes} of the config stand in the order {order} in the file, which mmdet '
            'follows: every box would get a wrong name. Put the categories of the file in the '
            f'order of the config: {mending.in_order(file, classes)}'
        )
    return {c['id'] for c in categories if c['name'] in classes}


def _check_names(images: list[dict], warnings: list[str]) -> None:
    users: dict[str, list[int]] = {}
    limit = files.max_megapixels()
    for image in images:
        ident, name, width, height = (image[k] for k in ('id', 'file_name', 'width', 'height'))
        if type(name) is not str or not name:
            raise DataError(f'image {ident}: file_name is {show(name)}, expected a text.')
        if min(width, height) < 1 or width * height > limit * 1e6:
            need = -(-width * height // 10**6)
            more = (
                f' Pass --max-megapixels {need} if it is so large.'
                if min(width, height) > 0
                else ''
            )
            raise DataError(
                f'image {ident}: size {width}x{height}, allowed 1x1 to {limit:g} megapixels.{more}'
            )
        users.setdefault(name, []).append(ident)
    if len(users) < len(images):
        name, ids = next((name, ids) for name, ids in users.items() if len(ids) > 1)
        warnings.append(f'file_name {show(name)} is used by images {", ".join(map(str, ids))}.')


def floats(values: list) -> np.ndarray:
    """As float64; what is no number becomes nan, bools too."""
    try:
        if set(map(type, values)) <= {int, float}:
            return np.array(values, np.float64)
    except OverflowError:  # an integer beyond float64
        pass
    return np.array([v if type(v) in (int, float) and abs(v) < 1e300 else np.nan for v in values])


def _check_boxes(
    annotations: list[dict],
    sizes: np.ndarray,
    doubt: Callable[[str], None],
    warnings: list[str],
    crowds: tuple = (0, 1),
) -> np.ndarray:
    """Which boxes mmdet keeps; `sizes` are width and height (N, 2) of their images."""
    boxes = [a['bbox'] for a in annotations]
    for annotation, box in zip(annotations, boxes):
        if type(box) is not list or len(box) != 4:
            raise DataError(
                f'annotation {annotation["id"]}: bbox is {show(box)}, expected [x, y, w, h].'
            )
        if annotation.get('iscrowd', 0) not in crowds:
            crowd = show(annotation['iscrowd'])
            raise DataError(f'annotation {annotation["id"]}: iscrowd is {crowd}, allowed 0, 1.')
    values = floats(list(chain.from_iterable(boxes)))
    wild = np.flatnonzero(~(np.abs(values) <= _FAR))
    if wild.size:
        row, column = divmod(int(wild[0]), 4)
        raise DataError(
            f'annotation {annotations[row]["id"]}: bbox[{column}] is {show(boxes[row][column])}. '
            'Correct or remove it.'
        )
    areas = floats([a['area'] for a in annotations])
    wild = np.flatnonzero(~np.isfinite(areas))
    if wild.size:
        annotation = annotations[wild[0]]
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
    kept, found = np.ones(len(boxes), bool), []
    for fault, bad in faults.items():
        bad &= kept
        kept &= ~bad
        if bad.any():
            found.append(f'{bad.sum()} {fault}')
    if found:
        dropped = len(boxes) - kept.sum()
        doubt(
            f'{dropped} of {len(boxes)} boxes are dropped: {", ".join(found)}, e.g. that of '
            f'annotation {annotations[kept.argmin()]["id"]}. Correct or remove them.',
            tolerated=dropped <= 0.01 * len(boxes),
        )
    return kept


def _check_masks(
    annotations: list[dict],
    sizes: np.ndarray,
    *,
    masks: bool,
    poly2mask: bool,
    tolerant: bool,
    warnings: list[str],
) -> None:
    short = clipped = 0
    for start in range(0, len(annotations), _CHUNK):
        polygons, owners = [], []
        for row, annotation in enumerate(annotations[start : start + _CHUNK], start):
            segmentation, who = annotation.get('segmentation'), annotation['id']
            if not segmentation:
                if masks:
                    raise DataError(
                        f'annotation {who}: no segmentation, but this config trains or scores '
                        'masks. Remove the annotation or set with_mask=False.'
                    )
            elif type(segmentation) is list:
                polygons += segmentation
                owners += [row] * len(segmentation)
            elif type(segmentation) is dict:
                problem = _rle_problem(segmentation, *sizes[row].astype(int).tolist())
                if problem:
                    raise DataError(f'annotation {who}: {problem}. Correct or remove it.')
                if masks and not poly2mask and not annotation.get('iscrowd'):
                    raise DataError(
                        f'annotation {who}: its mask is RLE, which poly2mask=False drops. '
                        'Set poly2mask=True in LoadAnnotations.'
                    )
            else:
                raise DataError(
                    f'annotation {who}: segmentation is {show(segmentation)}, expected polygons or '
                    'RLE.'
                )
        if polygons:
            found = _check_polygons(polygons, owners, annotations, sizes, tolerant)
            short, clipped = short + found[0], clipped + found[1]
    if short:
        warnings.append(f'{short} polygons of under 6 or an odd number of coordinates are dropped.')
    if clipped:
        warnings.append(f'{clipped} polygons leave their image and are clipped to it.')


def _check_polygons(
    polygons: list, owners: list[int], annotations: list[dict], sizes: np.ndarray, tolerant: bool
) -> tuple[int, int]:
    """How many are too short and how many leave their image; `owners` are their annotations."""

    def refuse(at: int, why: str) -> None:
        ident, number = annotations[owners[at]]['id'], at - owners.index(owners[at])
        raise DataError(f'annotation {ident}: polygon {number} {why}. Correct or remove it.')

    for at, polygon in enumerate(polygons):
        if type(polygon) is not list:
            refuse(at, f'is {show(polygon)}, expected a list of numbers')
    lengths = np.array(list(map(len, polygons)))
    short = np.flatnonzero((lengths < 6) | (lengths % 2 > 0))
    if short.size and not tolerant:
        refuse(short[0], f'has {lengths[short[0]]} coordinates, needs an even number ≥ 6')
    for at in short:
        polygons[at], lengths[at] = [0] * 6, 6  # passes what follows
    ends = lengths.cumsum()
    values = floats(list(chain.from_iterable(polygons)))
    wild = np.flatnonzero(~(np.abs(values) <= _FAR))
    if wild.size:
        at = int(np.searchsorted(ends, wild[0], side='right'))
        refuse(at, f'holds {show(polygons[at][wild[0] - ends[at]])}')
    points, first = values.reshape(-1, 2), (ends - lengths) // 2
    steps = np.abs(np.diff(points, axis=0, append=0)).max(1)
    steps[ends // 2 - 1] = 0  # from a polygon to the next
    outline = np.add.reduceat(steps, first)
    if outline.max() > _FAR:
        refuse(int(outline.argmax()), f'has an outline of {outline.max():.0f} px')
    low, high = np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)
    return short.size, int(((low < -1) | (high > sizes[owners] + 1)).any(1).sum())


def _rle_problem(rle: dict, width: int, height: int) -> str | None:
    """What is wrong with a run-length encoded mask of an image, as the beginning of a sentence."""
    size, counts = rle.get('size'), rle.get('counts')
    if type(size) is not list or list(map(type, size)) != [int, int]:
        return f'RLE size is {show(size)}, expected [height, width]'
    if size != [height, width]:
        return f'RLE size {size[1]}x{size[0]}, image {width}x{height}'
    if type(counts) is str:
        try:
            counts = run_lengths(counts)
        except ValueError:
            counts = None
    if type(counts) is not list:
        return 'RLE counts are damaged'
    wrong = [c for c in counts if type(c) is not int or not 0 <= c < 2**32]
    if wrong:
        return f'RLE counts hold {show(wrong[0])}'
    if sum(counts) != width * height:
        return f'RLE covers {sum(counts)} px, image has {width * height}'
    return None


def prepare_coco(root: str | Path, say: Callable[[str], None] = print) -> dict[str, int]:
    """Check what lies under `root`, COCO 2017 as unpacked.

    Args:
        root: the folder that holds `annotations`, `train2017` and `val2017`.
        say: told what was found, a line per split.

    Returns:
        images per split.

    Raises:
        DataError: a folder or a file is missing.
    """
    root, counts = Path(root), {}
    for split, expected in COUNTS.items():
        folder, file = root / f'{split}2017', root / 'annotations' / f'instances_{split}2017.json'
        for path in folder, file:
            if not path.exists():
                raise DataError(f'COCO: {path} does not exist. Unpack {PACKAGES} into {root}.')
        counts[split] = sum(1 for _ in folder.glob('*.jpg'))
        if not counts[split]:
            raise DataError(f'COCO: no image in {folder}. Unpack {PACKAGES} into {root}.')
        note = '' if counts[split] == expected else f' (the original set has {expected})'
        say(f'{split}: {counts[split]} images{note}')
    return counts
