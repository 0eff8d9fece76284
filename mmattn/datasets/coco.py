"""Checking COCO instance files before anything reads them, and a download of COCO.

mmdet silently drops or relabels entries that do not fit; pycocotools crashes on them, or reads
foreign memory for a mask. A file that passes here is safe for both.
"""

import gc
import hashlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmattn.errors import DataError

from . import annotation_filter, check_cache, coco_images
from .coco_boxes import check_boxes
from .coco_entries import (
    KEYS,
    check_image_entries,
    check_not_panoptic,
    chosen_categories,
    parse_coco,
    read_entries,
)
from .coco_masks import check_masks
from .image_limits import max_megapixels
from .loading_steps import LoadingSteps

# Images per split; cocodataset.org, "2017 Train images" and "2017 Val images".
COUNTS = {'train': 118287, 'val': 5000}
PACKAGES = 'train2017.zip, val2017.zip and annotations_trainval2017.zip of cocodataset.org'

_VERSION = 3  # of the check: verdicts of other versions do not count


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
    loading: LoadingSteps | None = None,
) -> list[str]:
    """Check a COCO instance file and its images; a verdict without error is cached.

    Args:
        annotations: JSON file.
        images: folder that the file names in it are relative to.
        classes: class names of the config; None takes every category of the file.
        masks: whether the config trains or scores masks.
        segmentations: whether to check segmentations; no detector of boxes reads them.
        poly2mask: argument of mmdet's `LoadAnnotations`.
        train: whether the set is trained on, not scored.
        lenient: warn about everything that the loader drops, however much it is.
        part: whether it is trained on with other sets, so that it may hold no object.
        scored: whether its objects are scored; the file of a benchmark's test set has none.
        where: config key of the data set, for messages.
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
    loading = loading or LoadingSteps([])
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
    reading = loading.describe(), max_megapixels()
    digest.update(repr((_VERSION, os.path.abspath(folder), options, reading)).encode())
    key = digest.hexdigest()[:32]
    warnings = _cached_warnings(key, folder)
    if warnings is None:
        had_gc = gc.isenabled()
        gc.disable()  # it would walk millions of new objects again and again
        try:
            coco = parse_coco(data, name)
            warnings = _check(coco, file, folder, loading, **options)
        except DataError as error:
            raise DataError(f'{name}: {error}') from error
        finally:
            if had_gc:
                gc.enable()
        _cache_warnings(key, folder, [image['file_name'] for image in coco['images']], warnings)
    return [f'{name}: {warning}' for warning in warnings]


def _cached_warnings(key: str, folder: Path) -> list[str] | None:
    """The warnings of an earlier check; None if there was none or an image has changed since."""
    verdict = check_cache.load_verdict(key)
    try:
        unchanged = _image_state(folder, verdict['images']) == verdict['state']
        return verdict['warnings'] if unchanged else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cache_warnings(key: str, folder: Path, names: list[str], warnings: list[str]) -> None:
    state = _image_state(folder, names)
    verdict = dict(folder=str(folder), warnings=warnings, state=state, images=names)
    check_cache.save_verdict(key, verdict)


def _image_state(folder: Path, names: list[str]) -> str:
    return check_cache.fingerprint([tuple(os.path.join(folder, name) for name in names)], [])


def _check(
    coco: dict,
    file: Path,
    folder: Path,
    loading: LoadingSteps,
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
    """Check the content of a file and its images; arguments and returns are `check_coco`'s."""
    warnings = []

    def refuse_or_warn(text: str, *, tolerated: bool = False) -> None:
        if not (tolerated or lenient):
            raise DataError(text)
        warnings.append(text)

    check_not_panoptic(coco)
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
    category_ids = chosen_categories(categories, classes, file)
    check_image_entries(images, warnings)
    positions = {image['id']: i for i, image in enumerate(images)}
    orphans = [a for a in annotations if a['image_id'] not in positions]
    if orphans:
        refuse_or_warn(
            f'annotation {orphans[0]["id"]} refers to image {orphans[0]["image_id"]}, which does '
            f'not exist ({len(orphans)} such annotations). Remove them or add the images.'
        )
        annotations = [a for a in annotations if a['image_id'] in positions]
    _check_category_ids(annotations, categories)
    _check_iscrowd(annotations, scored and not train, warnings)
    rows = [positions[a['image_id']] for a in annotations]
    sizes = np.array([(i['width'], i['height']) for i in images], np.float64)[rows]
    # mmdet trains with 0 for null, pycocotools fails on it
    allowed_iscrowd = (0, 1, None) if train else (0, 1)
    valid = check_boxes(annotations, sizes, refuse_or_warn, warnings, allowed_iscrowd)
    reasons = annotation_filter.count_reasons(annotations, valid.tolist(), category_ids)
    if not reasons[annotation_filter.LEARNT]:
        described = annotation_filter.describe_reasons(reasons)
        remedy = annotation_filter.remedy_for_reasons(reasons)
        if train and not part:
            raise DataError(
                f'no training image left: {len(images)} images, {len(images)} without a box of the '
                f'{len(category_ids)} classes to learn from ({described}). {remedy}'
            )
        if reasons[annotation_filter.CROWD] or reasons[annotation_filter.IGNORED]:
            warnings.append(f'nothing to score: {described}. {remedy}')
    if segmentations:
        check_masks(
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


def _check_category_ids(annotations: list[dict], categories: list[dict]) -> None:
    counts = Counter(a['category_id'] for a in annotations)
    undefined = sorted(counts.keys() - {c['id'] for c in categories}, key=str)
    if undefined:
        total = sum(counts[i] for i in undefined)
        raise DataError(
            f'category ids {", ".join(map(str, undefined[:5]))} are used by {total} annotations '
            'but not defined. Add them to categories.'
        )


def _check_iscrowd(annotations: list[dict], required: bool, warnings: list[str]) -> None:
    """Refuse annotations without 'iscrowd' if pycocotools scores them; mmdet trains with 0."""
    missing = [a['id'] for a in annotations if 'iscrowd' not in a]
    if missing and required:
        raise DataError(
            f"annotation {missing[0]}: missing 'iscrowd', which scoring reads ({len(missing)} such "
            'annotations). Add 0.'
        )
    if missing:
        warnings.append(
            f"{len(missing)} annotations, e.g. {missing[0]}, have no 'iscrowd': 0 is taken."
        )


def count_drop_reasons(coco: dict, classes: tuple[str, ...] | None) -> Counter:
    """Count the annotations of a valid file by why mmdet drops them, see `count_reasons`."""
    images, annotations, categories = (read_entries(coco, kind) for kind in KEYS)
    category_ids = {c['id'] for c in categories if classes is None or c['name'] in classes}
    image_sizes = {image['id']: (image['width'], image['height']) for image in images}
    annotations = [a for a in annotations if a['image_id'] in image_sizes]
    sizes = np.array([image_sizes[a['image_id']] for a in annotations], np.float64)
    valid = check_boxes(annotations, sizes, lambda *_, **__: None, [], (0, 1, None))
    return annotation_filter.count_reasons(annotations, valid.tolist(), category_ids)


def prepare_coco(root: str | Path, log: Callable[[str], None] = print) -> dict[str, int]:
    """Check a download of COCO 2017.

    Args:
        root: folder that holds `annotations`, `train2017` and `val2017`.
        log: called with a line per split.

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
        log(f'{split}: {counts[split]} images{note}')
    return counts
