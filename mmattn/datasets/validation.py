"""Checking a data set before the first step, instead of failing hours into it."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mmattn.config.leaves import dataset_leaves
from mmattn.errors import DataError, UsageError, printable

from . import annotation_filter as held
from . import image_io as files
from . import unchecked as unseen
from .label_maps import LabelMaps
from .loading_steps import Loading

_VERSION = 4  # of the check of label maps: a verdict of another version does not count
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmattn' / 'checks'
# Made by tools/prepare_data.py, into data/<name>.
_FROM_ROOT = 'python tools/prepare_data.py {} --root DIR'
_PREPARED = {
    'street': 'Make it with: python tools/prepare_data.py street',
    'coco': f'Unpack COCO 2017 into a folder, then run: {_FROM_ROOT.format("coco")}',
    **{
        name: f'Get the original set, then run: {_FROM_ROOT.format(name)}'
        for name in ('bccd', 'dsb2018', 'cityscapes')
    },
}


def check_loaders(cfg: dict, *parts: str, skip: bool = False) -> None:
    """Check the data of the loaders of a config, such as 'train' and 'val'.

    Args:
        cfg: the config.
        parts: which loaders.
        skip: look at nothing, and say so.

    Raises:
        DataError, UsageError: as `check_data`.
    """
    if skip:
        print_log(
            '--skip-data-check: nothing has looked at the data, so a faulty file shows when it is '
            'read, or not at all.',
            logger='current',
            level=logging.WARNING,
        )
        return
    for part in parts:
        name = f'{part}_dataloader'
        check_data(cfg[name]['dataset'], name, cfg.get(f'{part}_evaluator'))


def check_data(cfg: dict, where: str, evaluator: dict | list | None = None) -> None:
    """Check every data set of a dataloader config; warnings go to the log.

    Of segmentation, all files are looked at once: both exist, neither is cut short, sizes agree,
    every label value is a class or ignored. Of COCO's format, see `coco.check_coco`. The verdict is
    cached by names, sizes and times of the files.

    Args:
        cfg: a dataset config, wrappers included.
        where: the key of its data loader in the config.
        evaluator: what scores it.

    Raises:
        DataError: names the file and what to do.
        UsageError: the config contradicts itself.
    """
    leaves, learnt = list(dataset_leaves(cfg)), []
    for leaf in leaves:
        for step in leaf.get('pipeline', []):
            if step.get('ignore_empty'):  # mmengine draws another one
                raise UsageError(
                    f'{step["type"]} of {where} has ignore_empty=True, by which an image that '
                    'cannot be read is replaced by another without a word. Leave it out.'
                )
        if not where.startswith('train') and leaf.get('indices') in (0, [], ()):
            raise UsageError(
                f'config key {where}.dataset.indices={leaf["indices"]!r} leaves no image. Leave it '
                'out.'
            )
        dataset, clients = build(leaf), unseen.backends(leaf)
        if clients:
            masks = learns_masks(leaf)
            warnings = unseen.check_behind(leaf, where, clients, masks, len(leaves) > 1)
        elif has_label_maps(dataset) and are_images_alone(leaf, where, evaluator):
            unseen.check_images(dataset, where)
            continue
        elif has_label_maps(dataset):
            warnings = _check_label_maps(LabelMaps(dataset, leaf, where))
        elif hasattr(dataset, 'COCOAPI'):
            warnings = check_coco(dataset, leaf, where, evaluator, part=len(leaves) > 1)
            if where.startswith('train') and len(leaves) > 1:
                found = count_held(leaf, Path(dataset.ann_file), learns_masks(leaf))
                learnt.append(found.images and found.boxes)
        else:
            continue
        for warning in warnings:
            print_log(printable(warning), logger='current', level=logging.WARNING)
    if len(learnt) == len(leaves) and not any(learnt):
        raise DataError(
            f'nothing to learn from: the {len(leaves)} data sets of {where} hold no box. Look at '
            'them with: python tools/check_data.py CONFIG'
        )


def check_classes(cfg: dict, heads: dict[str, int], where: str) -> None:
    """Compare the classes of the data with the `num_classes` of the heads, given by config key.

    Panoptic data have things and stuff beside all classes, and a head may be of either; semantic
    heads of detectors learn from label maps that the data set does not tell of.

    Raises:
        UsageError: a head has another number of classes than the data.
    """
    for leaf in dataset_leaves(cfg):
        dataset = build(leaf)
        meta = dataset.metainfo
        classes = meta.get('classes')
        if classes is None:
            continue
        counts = {
            len(meta[k]) for k in ('classes', 'thing_classes', 'stuff_classes') if meta.get(k)
        }
        for key, count in heads.items():
            if count == 2 and len(classes) == 1 and has_label_maps(dataset):
                raise UsageError(
                    f'config key {key}=2 does not fit the data: {leaf["type"]} of {where} has 1 '
                    f"class. Name both: metainfo=dict(classes=('background', {classes[0]!r}))."
                )
            if count not in counts and 'semantic_head' not in key:
                raise UsageError(
                    f'config key {key}={count} does not fit the data: {leaf["type"]} of {where} '
                    f'has {len(classes)} classes. Set {key}={len(classes)}.'
                )


def build(leaf: dict):
    """The data set of a config without its files read.

    Raises:
        DataError: it cannot be made, such as one that looks for its folder at once.
    """
    _check_names(leaf)
    try:
        dataset = DATASETS.build(dict(leaf, lazy_init=True, pipeline=[]))
        facts = getattr(dataset, '_metainfo', None)
        if isinstance(facts, dict):  # arrays have no truth value
            facts.update({k: v.tolist() for k, v in facts.items() if isinstance(v, np.ndarray)})
        return dataset
    except (TypeError, KeyError, ValueError, AssertionError, RuntimeError, OSError) as error:
        text = str(error).strip() or f'{type(error).__name__} without a word'
        raise DataError(
            f'data set {leaf["type"]} with data_root={leaf.get("data_root")} cannot be made: {text}'
        ) from error


def _check_names(leaf: dict) -> None:
    """Refuse classes that are one text: its letters would be the classes."""
    classes = (leaf.get('metainfo') or {}).get('classes')
    if isinstance(classes, str) and not os.path.isfile(classes):
        raise UsageError(
            f'config key metainfo.classes={classes!r} of data set {leaf["type"]} is a text, whose '
            f'letters would be the classes. Write classes=({classes!r},), with a comma.'
        )


def has_label_maps(dataset) -> bool:
    return 'seg_map_path' in getattr(dataset, 'data_prefix', {})


def check_coco(dataset, leaf: dict, where: str, evaluator=None, *, part: bool = False) -> list[str]:
    """Check a data set of mmdet as its config reads it; returns warnings.

    As a `part` of several it may hold no box.

    A file that a class of its own reads is judged by what that class holds of it.

    Raises:
        DataError: names file, id and field, and what to do.
    """
    from mmdet.datasets import CocoDataset, CocoPanopticDataset

    from . import coco, panoptic

    name = Path(leaf.get('data_root') or '').name
    file = Path(dataset.ann_file)
    if name in _PREPARED and not file.is_file():
        raise DataError(
            f'data set {leaf["type"]} ({where}): {file} does not exist. {_PREPARED[name]}'
        )
    train, kind = where.startswith('train'), type(dataset)
    loads = [step for step in leaf.get('pipeline', []) if 'with_mask' in step]
    masks = learns_masks(leaf) if train else learns_masks(leaf) or scores_masks(evaluator)
    classes, warnings = dataset.metainfo['classes'], []
    stock = all(
        getattr(kind, method) is getattr(CocoDataset, method)
        for method in ('load_data_list', 'parse_data_info')
    )
    if stock:
        options = loads[0] if loads else {}
        warnings = coco.check_coco(
            file,
            dataset.data_prefix['img'],
            classes=classes,
            masks=masks,
            segmentations=masks,
            poly2mask=options.get('poly2mask', True),
            train=train,
            part=part,
            scored=not unscored(evaluator),
            where=where,
            loading=Loading(leaf.get('pipeline', [])),
        )
    elif not file.is_file():
        raise DataError(f'{file} ({where}) does not exist. Set ann_file and data_root.')
    elif isinstance(dataset, CocoPanopticDataset):
        try:
            panoptic.check_panoptic(dataset, where)
        except (AttributeError, TypeError) as error:  # lists and objects where others belong
            raise DataError(
                f'{file} ({where}) is not of the form of COCO panoptic segments: {error}. Get it '
                'again.'
            ) from error
    if train and not part:
        found = count_held(leaf, file, masks)
        panoptic_data = isinstance(dataset, CocoPanopticDataset)  # stuff has no boxes
        if not found.images or not (found.boxes or panoptic_data):
            why = coco.why_dropped(json.loads(file.read_bytes()), classes) if stock else Counter()
            raise DataError(f'{file} ({where}): {held.nothing_learnt(found, why, leaf)}')
    return warnings


def count_held(leaf: dict, file: Path, masks: bool) -> held.Held:
    """What the loader holds of a file, as it was counted earlier or is now."""
    known = {k: v for k, v in leaf.items() if k != 'pipeline'}
    cache = CACHE / f'{fingerprint([(str(file),)], [_VERSION, "held", repr(known), masks])}.json'
    try:
        return held.Held(*json.loads(cache.read_text()))
    except (OSError, ValueError, TypeError):
        pass  # not counted yet
    found = held.held(leaf, masks)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(found))
    except OSError:
        pass  # nowhere to keep it
    return found


def learns_masks(leaf: dict) -> bool:
    """Whether a step of the pipeline loads masks."""
    return any(step.get('with_mask') for step in leaf.get('pipeline', []))


def scores_masks(evaluator) -> bool:
    """Whether an evaluator, or one of several, compares masks."""
    several = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    return any('segm' in (one.get('metric') or ()) for one in several if isinstance(one, dict))


def unscored(evaluator) -> bool:
    """Whether results are only written, as for the server of a benchmark."""
    several = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    return all(isinstance(one, dict) and bool(one.get('format_only')) for one in several)


def are_images_alone(leaf: dict, where: str, evaluator) -> bool:
    """Whether nobody reads the label maps of a data set: the test set of a benchmark has none."""
    return not where.startswith('train') and unscored(evaluator) and unseen.has_images_alone(leaf)


def _check_label_maps(maps: LabelMaps) -> list[str]:
    """Look at all files, or at the verdict of an earlier look; returns warnings."""
    if maps.missing:
        kind, text = maps.missing[0]
        count = sum(fault.kind == kind for fault in maps.missing)
        raise DataError(
            f'{maps.name}: {count} of {maps.count} images {kind}, e.g. {text}. '
            f'{maps.remedy_of_missing(kind)}'
        )
    cache, lonely = cached(maps), maps.lonely()
    try:
        return json.loads(cache.read_text())['warnings'] + lonely
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no verdict yet
    faults: list[files.Fault] = []
    pixels = np.zeros(256, np.int64)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoding frees the GIL
        for found in maps.scan(pool):
            faults += found.faults
            pixels += 0 if found.pixels is None else found.pixels
    faults = [fault for fault in faults if fault.kind != 'doubt']
    overall, warnings = maps.judge(pixels)
    faults += overall
    if faults:
        kind, text = faults[0]
        rest = len(faults) - 1
        more = f' (and {rest} more: python tools/check_data.py CONFIG lists all)' if rest else ''
        wrong = np.flatnonzero((pixels > 0) & (maps.table < 0)).tolist()
        texts = [other for known, other in faults if known == kind]
        raise DataError(f'{text}{more}. {maps.cure(kind, wrong, texts)}')
    keep(cache, maps, warnings)
    return warnings + lonely


def cached(maps: LabelMaps) -> Path:
    """Where the verdict on these files is kept."""
    known = [_VERSION, maps.train, maps.table.tolist(), maps.classes, maps.reduced]
    known += [maps.loading.describe(), files.max_megapixels()]
    return CACHE / f'{fingerprint(maps.pairs, known)}.json'


def keep(cache: Path, maps: LabelMaps, warnings: list[str]) -> None:
    """Remember that nothing is wrong with these files."""
    verdict = dict(folder=str(maps.folder), pairs=len(maps.pairs), warnings=warnings)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(verdict))
    except OSError:
        pass  # nowhere to keep it: the next run checks again


def fingerprint(paths: Iterable[tuple[str, ...]], known: list) -> str:
    """Of names, sizes and times of files, and of what else the verdict depends on."""
    digest = hashlib.sha256(repr(known).encode())
    for path in chain.from_iterable(paths):
        stat = os.stat(path)
        digest.update(f'{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}\n'.encode())
    return digest.hexdigest()[:32]
