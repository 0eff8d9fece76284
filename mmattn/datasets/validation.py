"""Checking a data set before the first step, instead of failing hours into it."""

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mmattn.config.leaves import dataset_leaves
from mmattn.errors import DataError, UsageError, printable
from mmattn.log import warn

from . import check_cache, coco, image_io, partial_checks
from .annotation_filter import LoadedCounts, count_loaded, describe_nothing_to_learn
from .build import (
    build_dataset,
    has_label_maps,
    is_unscored,
    metainfo_of,
    scores_masks,
    trains_masks,
)
from .label_maps import LabelMaps
from .loading_steps import LoadingSteps
from .panoptic import check_panoptic

_VERSION = 4  # of the counts of `count_loaded`: those of other versions do not count
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
    """Check the data of the loaders of a config.

    Args:
        cfg: a whole config.
        parts: names of the loaders, such as 'train' and 'val'.
        skip: check nothing, and warn about it.

    Raises:
        DataError, UsageError: as `check_data`.
    """
    if skip:
        warn(
            '--skip-data-check: nothing has looked at the data, so a faulty file shows when it is '
            'read, or not at all.'
        )
        return
    for part in parts:
        name = f'{part}_dataloader'
        check_data(cfg[name]['dataset'], name, cfg.get(f'{part}_evaluator'))


def check_data(cfg: dict, where: str, evaluator: dict | list | None = None) -> None:
    """Check every data set of a dataloader config; warnings go to the log.

    For segmentation, all files are checked: each image has a label map, none is cut short, sizes
    agree, every label value is a class or ignored. For COCO's format, see `coco.check_coco`. The
    verdict is cached by names, sizes and times of the files.

    Args:
        cfg: config of a data set, wrappers included.
        where: config key of its data loader.
        evaluator: config of the evaluator that scores it.

    Raises:
        DataError: names the file and what to do.
        UsageError: the config contradicts itself.
    """
    leaves, trained = list(dataset_leaves(cfg)), []
    for leaf in leaves:
        _check_keys(leaf, where)
        part = len(leaves) > 1
        dataset, backends = build_dataset(leaf), partial_checks.remote_backends(leaf)
        if backends:
            warnings = partial_checks.check_remote(leaf, where, backends, trains_masks(leaf), part)
        elif has_label_maps(dataset) and partial_checks.reads_images_alone(leaf, where, evaluator):
            partial_checks.check_images(dataset, where)
            continue
        elif has_label_maps(dataset):
            warnings = _check_label_maps(LabelMaps(dataset, leaf, where))
        elif hasattr(dataset, 'COCOAPI'):
            warnings = check_coco_dataset(dataset, leaf, where, evaluator, part=part)
            if where.startswith('train') and part:
                counts = cached_counts(leaf, Path(dataset.ann_file), trains_masks(leaf))
                trained.append(counts.images and counts.boxes)
        else:
            continue
        for warning in warnings:
            warn(printable(warning))
    if len(trained) == len(leaves) and not any(trained):
        raise DataError(
            f'nothing to learn from: the {len(leaves)} data sets of {where} hold no box. Look at '
            'them with: python tools/check_data.py CONFIG'
        )


def _check_keys(leaf: dict, where: str) -> None:
    """Refuse settings by which images are silently replaced, or none is left."""
    for step in leaf.get('pipeline', []):
        if step.get('ignore_empty'):  # mmengine draws another image
            raise UsageError(
                f'{step["type"]} of {where} has ignore_empty=True, by which an image that cannot '
                'be read is silently replaced by another. Leave it out.'
            )
    if not where.startswith('train') and leaf.get('indices') in (0, [], ()):
        raise UsageError(
            f'config key {where}.dataset.indices={leaf["indices"]!r} leaves no image. Leave it out.'
        )


def check_classes(cfg: dict, heads: dict[str, int], where: str) -> None:
    """Compare the classes of the data with the `num_classes` of the heads.

    Panoptic data have thing classes and stuff classes as well, and a head may have either number;
    semantic heads of detectors learn from label maps that the data set does not describe.

    Args:
        cfg: config of a data set, wrappers included.
        heads: `num_classes` by config key.
        where: config key of the data loader.

    Raises:
        UsageError: a head has another number of classes than the data.
    """
    for leaf in dataset_leaves(cfg):
        dataset = build_dataset(leaf)
        meta = metainfo_of(dataset)
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


def check_coco_dataset(
    dataset, leaf: dict, where: str, evaluator: dict | list | None = None, *, part: bool = False
) -> list[str]:
    """Check a data set of mmdet as its config reads it.

    A file that a data set class of the user reads is judged by what that class loads from it.

    Args:
        dataset: lazily built.
        leaf: config of the data set.
        where: config key of its data loader.
        evaluator: config of the evaluator that scores it.
        part: whether it is trained on with other sets, so that it may hold no box.

    Returns:
        warnings, a sentence each.

    Raises:
        DataError: names file, id and field, and what to do.
    """
    from mmdet.datasets import CocoDataset, CocoPanopticDataset

    name = Path(leaf.get('data_root') or '').name
    file = Path(dataset.ann_file)
    if name in _PREPARED and not file.is_file():
        raise DataError(
            f'data set {leaf["type"]} ({where}): {file} does not exist. {_PREPARED[name]}'
        )
    train, kind = where.startswith('train'), type(dataset)
    is_panoptic = isinstance(dataset, CocoPanopticDataset)
    masks = trains_masks(leaf) or (not train and scores_masks(evaluator))
    classes, warnings = dataset.metainfo['classes'], []
    is_stock = all(
        getattr(kind, method) is getattr(CocoDataset, method)
        for method in ('load_data_list', 'parse_data_info')
    )
    if is_stock:
        steps = [step for step in leaf.get('pipeline', []) if 'with_mask' in step]
        warnings = coco.check_coco(
            file,
            dataset.data_prefix['img'],
            classes=classes,
            masks=masks,
            segmentations=masks,
            poly2mask=steps[0].get('poly2mask', True) if steps else True,
            train=train,
            part=part,
            scored=not is_unscored(evaluator),
            where=where,
            loading=LoadingSteps(leaf.get('pipeline', [])),
        )
    elif not file.is_file():
        raise DataError(f'{file} ({where}) does not exist. Set ann_file and data_root.')
    elif is_panoptic:
        try:
            check_panoptic(dataset, where)
        except (AttributeError, TypeError) as error:  # lists and objects in each other's place
            raise DataError(
                f'{file} ({where}) is not of the form of COCO panoptic segments: {error}. Get it '
                'again.'
            ) from error
    if train and not part:
        counts = cached_counts(leaf, file, masks)
        if not counts.images or not (counts.boxes or is_panoptic):  # stuff has no boxes
            reasons = Counter()
            if is_stock:
                reasons = coco.count_drop_reasons(json.loads(file.read_bytes()), classes)
            problem = describe_nothing_to_learn(counts, reasons, leaf)
            raise DataError(f'{file} ({where}): {problem}')
    return warnings


def cached_counts(leaf: dict, file: Path, masks: bool) -> LoadedCounts:
    """`count_loaded` of a data set, from the cache if its file is unchanged."""
    settings = {key: value for key, value in leaf.items() if key != 'pipeline'}
    key = check_cache.fingerprint([(str(file),)], [_VERSION, 'held', repr(settings), masks])
    try:
        return LoadedCounts(*check_cache.load_verdict(key))
    except TypeError:
        pass  # not counted yet
    counts = count_loaded(leaf, masks)
    check_cache.save_verdict(key, counts)
    return counts


def _check_label_maps(maps: LabelMaps) -> list[str]:
    """Check all files, unless a verdict on them is cached; returns warnings."""
    if maps.missing:
        kind, text, _ = maps.missing[0]
        count = sum(fault.kind == kind for fault in maps.missing)
        raise DataError(
            f'{maps.name}: {count} of {maps.count} images {kind}, e.g. {text}. '
            f'{maps.remedy_for_missing(kind)}'
        )
    unpaired = maps.unpaired_labels()
    verdict = check_cache.load_verdict(maps.cache_key())
    if isinstance(verdict, dict) and isinstance(verdict.get('warnings'), list):
        return verdict['warnings'] + unpaired
    faults: list[image_io.Fault] = []
    label_counts = np.zeros(256, np.int64)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoding frees the GIL
        for info in maps.scan(pool):
            faults += info.faults
            label_counts += 0 if info.counts is None else info.counts
    faults = [fault for fault in faults if fault.kind != 'warning']
    overall, warnings = maps.check_overall(label_counts)
    faults += overall
    if faults:
        kind, text, _ = faults[0]
        rest = len(faults) - 1
        more = f' (and {rest} more: python tools/check_data.py CONFIG lists all)' if rest else ''
        wrong = np.flatnonzero((label_counts > 0) & (maps.table < 0)).tolist()
        same = [fault for fault in faults if fault.kind == kind]
        raise DataError(f'{text}{more}. {maps.remedy(kind, wrong, same)}')
    save_sound(maps, warnings)
    return warnings + unpaired


def save_sound(maps: LabelMaps, warnings: list[str]) -> None:
    """Cache the verdict that nothing is wrong with these files."""
    verdict = dict(folder=str(maps.folder), pairs=len(maps.pairs), warnings=warnings)
    check_cache.save_verdict(maps.cache_key(), verdict)
