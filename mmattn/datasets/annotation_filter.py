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
    CROWD: 'Write iscrowd=0 for what is a single object',
    IGNORED: "Take 'ignore' off what shall be learnt",
    _OTHER: 'Name the categories in metainfo.classes',
    _FAULTY: 'Correct their bbox and area',
    _DROPPED: 'Change filter_cfg or indices of the data set',
    _MASKLESS: 'Correct their segmentation, or set with_mask=False',
}


class Held(NamedTuple):
    """What a data set yields.

    Attributes:
        listed: images in the file.
        images: those that the loader yields.
        boxes: boxes in them that a detector learns from, groups left out; -1 if not known.
    """

    listed: int
    images: int
    boxes: int


def reasons(annotations: list[dict], kept: list[bool], chosen: set[int]) -> Counter:
    """How many annotations mmdet learns from, and of the others how many for which reason.

    Args:
        annotations: of COCO instances.
        kept: whether the box of each lies in its image.
        chosen: ids of the categories that are classes of the config.
    """
    found: Counter = Counter()
    for annotation, sound in zip(annotations, kept):
        if annotation.get('ignore', False):
            found[IGNORED] += 1
        elif not sound:
            found[_FAULTY] += 1
        elif annotation['category_id'] not in chosen:
            found[_OTHER] += 1
        else:
            found[CROWD if annotation.get('iscrowd', False) else LEARNT] += 1
    return found


def listed(found: Counter) -> str:
    """The reasons in words, e.g. '12 annotations: 7 groups (iscrowd=1), 5 with ignore=1'."""
    parts = [f'{n} {why}' for why, n in found.items() if why != LEARNT and n]
    total = sum(found.values())
    return f'{total} annotations' + (f': {", ".join(parts)}' if parts else '')


def remedy(found: Counter) -> str:
    """What to do about the most frequent reason."""
    dropped = [(n, why) for why, n in found.items() if why != LEARNT and n]
    return f'{_REMEDIES[max(dropped)[1]]}.' if dropped else 'Set ann_file and metainfo.classes.'


def held(leaf: dict, masks: bool = False) -> Held:
    """Load a data set as training does, without its images, and count what it holds.

    Args:
        leaf: its config.
        masks: whether masks are learnt, too: then a box without one is not.

    Raises:
        DataError: it cannot be loaded.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools' lines
        try:
            dataset = DATASETS.build(dict(leaf, lazy_init=True, pipeline=[], serialize_data=False))
            dataset.filter_data = partial(_counted, dataset, dataset.filter_data, counts := [])
            dataset.full_init()
        except MmattnError:
            raise
        except Exception as error:  # its class may be anyone's
            text = (str(error).strip() or type(error).__name__).rstrip('.')
            kind = f'{type(error).__name__}: ' if isinstance(error, KeyError) else ''
            client = leaf.get('backend_args')
            remedy = (
                f'Is backend_args={client!r} right?'
                if client
                else ('Is ann_file of the kind that it reads?')
            )
            raise DataError(
                f'data set {leaf["type"]} cannot be loaded: {kind}{text}. {remedy}'
            ) from error
    known = not dataset.data_list or any('instances' in entry for entry in dataset.data_list)
    boxes = sum(
        not instance.get('ignore_flag') and not (masks and _maskless(instance))
        for entry in dataset.data_list
        for instance in entry.get('instances', ())
    )
    images = len(dataset.data_list)
    return Held(counts[0] if counts else images, images, boxes if known else -1)


def _counted(dataset, own: Callable[[], list], counts: list[int]) -> list:
    """`filter_data` of a data set, its images counted before."""
    counts.append(len(dataset.data_list))
    return own()


def _maskless(instance: dict) -> bool:
    """Whether mmdet's LoadAnnotations ignores an instance for its polygons."""
    mask = instance.get('mask')
    return isinstance(mask, list) and not any(len(p) >= 6 and len(p) % 2 == 0 for p in mask)


def nothing_learnt(found: Held, why: Counter, leaf: dict) -> str:
    """The error about a data set of which the loader holds no box to learn from.

    Args:
        found: what it holds.
        why: of the annotations, see `reasons`; empty if that is not known.
        leaf: the config of the data set.
    """
    why = Counter(why)
    filtered = why.pop(LEARNT, 0)
    if filtered:
        why[_DROPPED if found.images < found.listed else _MASKLESS] += filtered
    options = leaf.get('filter_cfg') or {}
    if filtered and found.images < found.listed and leaf.get('indices') is not None:
        what = f'Leave indices={leaf["indices"]!r} out.'
    elif filtered and found.images < found.listed and options.get('min_size'):
        what = f'Lower filter_cfg.min_size={options["min_size"]!r}, the least side of an image.'
    else:
        what = remedy(why)
    return (
        f'nothing to learn from: the loader holds {found.images} of {found.listed} images, and '
        f'{found.boxes} boxes to learn from in them ({listed(why)}). {what}'
    )
