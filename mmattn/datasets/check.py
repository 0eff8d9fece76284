"""Checking a data set before the first step, instead of failing hours into it."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mmattn.datasets import files
from mmattn.datasets.label_maps import LabelMaps
from mmattn.engine.config import dataset_leaves
from mmattn.errors import DataError, UsageError, printable

_VERSION = 3  # of the check of label maps: a verdict of another version does not count
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmattn' / 'checks'
# Made by tools/prepare_data.py, into data/<name>.
_PREPARED = ('street', 'coco', 'bccd', 'dsb2018', 'cityscapes')


def check_data(cfg: dict, where: str) -> None:
    """Check every data set of a dataloader config; warnings go to the log.

    Of segmentation, all files are looked at once: both exist, neither is cut short, sizes agree,
    every label value is a class or ignored. Of COCO's format, see `coco.check_coco`. The verdict is
    cached by names, sizes and times of the files.

    Args:
        cfg: a dataset config, wrappers included.
        where: the key of its data loader in the config.

    Raises:
        DataError: names the file and what to do.
        UsageError: the config contradicts itself.
    """
    for leaf in dataset_leaves(cfg):
        for step in leaf.get('pipeline', []):
            if step.get('ignore_empty'):  # mmengine draws another one
                raise UsageError(
                    f'{step["type"]} of {where} has ignore_empty=True, by which an image that '
                    'cannot be read is replaced by another without a word. Leave it out.'
                )
        dataset = build(leaf)
        if has_label_maps(dataset):
            warnings = _check_label_maps(LabelMaps(dataset, leaf, where))
        elif hasattr(dataset, 'COCOAPI'):
            warnings = check_coco(dataset, leaf, where)
        else:
            continue
        for warning in warnings:
            print_log(printable(warning), logger='current', level=logging.WARNING)


def check_classes(cfg: dict, heads: dict[str, int], where: str) -> None:
    """Compare the classes of the data with the `num_classes` of the heads, given by config key.

    Panoptic data have things and stuff beside all classes, and a head may be of either; semantic
    heads of detectors learn from label maps that the data set does not tell of.

    Raises:
        UsageError: a head has another number of classes than the data.
    """
    for leaf in dataset_leaves(cfg):
        meta = build(leaf).metainfo
        classes = meta.get('classes')
        if classes is None:
            continue
        counts = {
            len(meta[k]) for k in ('classes', 'thing_classes', 'stuff_classes') if meta.get(k)
        }
        for key, count in heads.items():
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
        return DATASETS.build(dict(leaf, lazy_init=True, pipeline=[]))
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


def check_coco(dataset, leaf: dict, where: str) -> list[str]:
    """Check a data set of COCO's format as its config reads it; returns warnings.

    Raises:
        DataError: names file, id and field, and what to do.
    """
    from .coco import check_coco

    name = Path(leaf.get('data_root') or '').name
    if name in _PREPARED and not Path(dataset.ann_file).is_file():
        raise DataError(
            f'data set {leaf["type"]} ({where}): {dataset.ann_file} does not exist. '
            f'Make it with: python tools/prepare_data.py {name}'
        )
    loads = [step for step in leaf.get('pipeline', []) if step['type'] == 'LoadAnnotations']
    options = loads[0] if loads else {}
    return check_coco(
        dataset.ann_file,
        dataset.data_prefix['img'],
        classes=dataset.metainfo['classes'],
        masks=options.get('with_mask', False),
        poly2mask=options.get('poly2mask', True),
        train=where.startswith('train'),
        where=where,
    )


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
