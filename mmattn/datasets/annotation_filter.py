"""What mmdet's loader keeps of an annotation file after its filters, and why it drops the rest."""

import contextlib
import io
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from mmengine.registry import DATASETS

from mmattn.errors import DataError, MmattnError

LEARNT = 'learnt from'
CROWD = 'groups (iscrowd=1)'
IGNORED = 'with ignore=1'
_OTHER = 'of other categories'
_FAULTY = 'empty, outside their image or of area 0'
_DROPPED = 'in images that are left out'
_MASKLESS = 'without a polygon of 3 points'
_REMEDIES = {
    CROWD: 'Write iscrowd=0 for single objects',
    IGNORED: "Remove 'ignore' from the objects to learn from",
    _OTHER: 'Name the categories in metainfo.classes',
    _FAULTY: 'Correct their bbox and area',
    _DROPPED: 'Change filter_cfg or indices of the data set',
    _MASKLESS: 'Correct their segmentation, or set with_mask=False',
}


class LoadedCounts(NamedTuple):
    """Numbers of images and boxes that a data set yields.

    Attributes:
        listed: images in the file.
        images: images that the loader yields.
        boxes: boxes in them that a detector learns from, without groups; -1 if unknown.
    """

    listed: int
    images: int
    boxes: int


def count_reasons(annotations: list[dict], valid: list[bool], category_ids: set[int]) -> Counter:
    """Count the annotations that mmdet learns from, and the others by the reason why it does not.

    Args:
        annotations: annotations of COCO instances.
        valid: for each, whether its box lies in its image and has an area.
        category_ids: ids of the categories that are classes of the config.
    """
    reasons: Counter = Counter()
    for annotation, is_valid in zip(annotations, valid):
        if annotation.get('ignore', False):
            reasons[IGNORED] += 1
        elif not is_valid:
            reasons[_FAULTY] += 1
        elif annotation['category_id'] not in category_ids:
            reasons[_OTHER] += 1
        else:
            reasons[CROWD if annotation.get('iscrowd', False) else LEARNT] += 1
    return reasons


def describe_reasons(reasons: Counter) -> str:
    """The reasons in words, e.g. '12 annotations: 7 groups (iscrowd=1), 5 with ignore=1'."""
    parts = [f'{count} {reason}' for reason, count in reasons.items() if reason != LEARNT and count]
    total = sum(reasons.values())
    return f'{total} annotations' + (f': {", ".join(parts)}' if parts else '')


def remedy_for_reasons(reasons: Counter) -> str:
    """What to do about the most frequent reason."""
    dropped = [(count, reason) for reason, count in reasons.items() if reason != LEARNT and count]
    return f'{_REMEDIES[max(dropped)[1]]}.' if dropped else 'Set ann_file and metainfo.classes.'


def count_loaded(leaf: dict, masks: bool = False) -> LoadedCounts:
    """Load a data set as training does, without its images, and count what it yields.

    Args:
        leaf: config of the data set.
        masks: whether masks are trained, so that boxes without a mask do not count.

    Raises:
        DataError: the data set cannot be loaded.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools' lines
        try:
            dataset = DATASETS.build(dict(leaf, lazy_init=True, pipeline=[], serialize_data=False))
            dataset.filter_data = partial(
                _filter_and_count, dataset, dataset.filter_data, listed := []
            )
            dataset.full_init()
        except MmattnError:
            raise
        except Exception as error:  # a data set of the user raises anything
            reason = (str(error).strip() or type(error).__name__).rstrip('.')
            kind = f'{type(error).__name__}: ' if isinstance(error, KeyError) else ''
            backend_args = leaf.get('backend_args')
            remedy = (
                f'Is backend_args={backend_args!r} right?'
                if backend_args
                else 'Is ann_file of the kind that it reads?'
            )
            raise DataError(
                f'data set {leaf["type"]} cannot be loaded: {kind}{reason}. {remedy}'
            ) from error
    samples = dataset.data_list
    has_boxes = not samples or any('instances' in sample for sample in samples)
    boxes = sum(
        not instance.get('ignore_flag') and not (masks and _lacks_mask(instance))
        for sample in samples
        for instance in sample.get('instances', ())
    )
    return LoadedCounts(
        listed[0] if listed else len(samples), len(samples), boxes if has_boxes else -1
    )


def _filter_and_count(dataset, filter_data: Callable[[], list], listed: list[int]) -> list:
    """`filter_data` of a data set; appends the number of its images before the filter."""
    listed.append(len(dataset.data_list))
    return filter_data()


def _lacks_mask(instance: dict) -> bool:
    """Whether mmdet's LoadAnnotations ignores an instance for its polygons."""
    mask = instance.get('mask')
    return isinstance(mask, list) and not any(len(p) >= 6 and len(p) % 2 == 0 for p in mask)


def describe_nothing_to_learn(loaded: LoadedCounts, reasons: Counter, leaf: dict) -> str:
    """The error about a data set in which the loader finds no box to learn from.

    Args:
        loaded: what the loader yields.
        reasons: the annotations by reason, see `count_reasons`; empty if that is not known.
        leaf: config of the data set.
    """
    reasons = Counter(reasons)
    filtered = reasons.pop(LEARNT, 0)
    if filtered:
        reasons[_DROPPED if loaded.images < loaded.listed else _MASKLESS] += filtered
    filter_cfg = leaf.get('filter_cfg') or {}
    if filtered and loaded.images < loaded.listed and leaf.get('indices') is not None:
        remedy = f'Leave indices={leaf["indices"]!r} out.'
    elif filtered and loaded.images < loaded.listed and filter_cfg.get('min_size'):
        min_size = filter_cfg['min_size']
        remedy = f'Lower filter_cfg.min_size={min_size!r}, the least side of an image.'
    else:
        remedy = remedy_for_reasons(reasons)
    return (
        f'nothing to learn from: the loader holds {loaded.images} of {loaded.listed} images, and '
        f'{loaded.boxes} boxes to learn from in them ({describe_reasons(reasons)}). {remedy}'
    )
