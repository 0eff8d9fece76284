"""Checking a data set before the first step, instead of failing hours into it."""

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from PIL import Image

from mmattn.engine.config import dataset_leaves
from mmattn.errors import DataError, UsageError
from mmattn.progress import track

# The last bytes of a file that was written to its end.
_END = {'.jpg': b'\xff\xd9', '.jpeg': b'\xff\xd9', '.png': b'IEND\xaeB`\x82'}
_CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmattn' / 'checks'
_HOW_TO_GET = {
    'CityscapesDataset': 'Get it from cityscapes-dataset.com, then run: '
    'python tools/prepare_data.py cityscapes --root DIR',
    'CamVidDataset': 'Run: python tools/prepare_data.py camvid --root DIR',
}
_HOW_TO_MAKE_STREET = 'Make it with: python tools/prepare_data.py street'
_PREPARED = ('street', 'coco', 'bccd', 'dsb2018')  # by tools/prepare_data.py, into data/<name>


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
    """
    for leaf in dataset_leaves(cfg):
        dataset = DATASETS.build(dict(leaf, lazy_init=True, pipeline=[]))
        if 'seg_map_path' in getattr(dataset, 'data_prefix', {}):
            _check_segmentation(dataset, leaf['type'].split('.')[-1], where)
        elif hasattr(dataset, 'COCOAPI'):
            _check_coco(dataset, leaf, where)


def check_classes(cfg: dict, heads: dict[str, int], where: str) -> None:
    """Compare the classes of the data with the `num_classes` of the heads, given by config key.

    Raises:
        UsageError: a head has another number of classes than the data.
    """
    for leaf in dataset_leaves(cfg):
        dataset = DATASETS.build(dict(leaf, lazy_init=True, pipeline=[]))
        classes = dataset.metainfo.get('classes')
        if classes is None:
            continue
        for key, count in heads.items():
            if count != len(classes):
                raise UsageError(
                    f'config key {key}={count} does not fit the data: {leaf["type"]} of {where} '
                    f'has {len(classes)} classes. Set {key}={len(classes)}.'
                )


def _check_coco(dataset, leaf: dict, where: str) -> None:
    from .coco import check_coco

    name = Path(leaf.get('data_root') or '').name
    if name in _PREPARED and not Path(dataset.ann_file).is_file():
        raise DataError(
            f'data set {leaf["type"]} ({where}): {dataset.ann_file} does not exist. '
            f'Make it with: python tools/prepare_data.py {name}'
        )
    loads = [step for step in leaf.get('pipeline', []) if step['type'] == 'LoadAnnotations']
    options = loads[0] if loads else {}
    for warning in check_coco(
        dataset.ann_file,
        dataset.data_prefix['img'],
        classes=dataset.metainfo['classes'],
        masks=options.get('with_mask', False),
        poly2mask=options.get('poly2mask', True),
        train=where.startswith('train'),
        where=where,
    ):
        print_log(warning, logger='current', level=logging.WARNING)


def _check_segmentation(dataset, kind: str, where: str) -> None:
    remedy = _HOW_TO_GET.get(kind, f'Set {where}.dataset.data_root.')
    if 'street' in str(dataset.data_root):
        remedy = _HOW_TO_MAKE_STREET
    folders = {k: Path(v) for k, v in dataset.data_prefix.items() if v}
    for folder in [Path(dataset.data_root or '.'), *folders.values()]:
        if not folder.is_dir():
            raise DataError(f'data set {kind} ({where}): {folder} does not exist. {remedy}')
    pairs = [(d['img_path'], d['seg_map_path']) for d in dataset.load_data_list()]
    if not pairs:
        raise DataError(
            f'data set {kind} ({where}): no image *{dataset.img_suffix} below '
            f'{folders["img_path"]}. {remedy}'
        )
    missing = [image for image, label in pairs if not os.path.isfile(label)]
    if missing:
        example = dict(pairs)[missing[0]]
        raise DataError(
            f'data set {kind} ({where}): {len(missing)} of {len(pairs)} images have no label map, '
            f'e.g. {example} is missing. {remedy}'
        )
    count = len(dataset.metainfo['classes'])
    allowed = set(range(count + bool(dataset.reduce_zero_label))) | {dataset.ignore_index}
    allowed |= set(dataset.label_map or ())
    work = partial(_check_pair, allowed=frozenset(allowed))
    cache = _CACHE / f'{_fingerprint(pairs, sorted(allowed))}.json'
    if cache.exists():
        return
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoding frees the GIL
        results = pool.map(work, pairs)
        title = f'checking {folders["img_path"]}'
        problems = [p for p in track(results, total=len(pairs), title=title) if p]
    if problems:
        more = f' ({len(problems)} such files)' if len(problems) > 1 else ''
        raise DataError(f'{problems[0]}{more}. {_cure(problems[0], remedy)}')
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(dict(folder=str(folders['img_path']), pairs=len(pairs))))
    except OSError:
        pass  # nowhere to keep it: the next run checks again


def _cure(problem: str, remedy: str) -> str:
    if problem.startswith('label'):
        return f'The labels must be train ids. {remedy}'
    return 'Replace the file.'


def _fingerprint(pairs: list[tuple[str, str]], allowed: list[int]) -> str:
    digest = hashlib.sha256(repr(allowed).encode())
    for path in chain.from_iterable(pairs):
        stat = os.stat(path)
        digest.update(f'{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}\n'.encode())
    return digest.hexdigest()[:32]


def _check_pair(pair: tuple[str, str], allowed: frozenset[int]) -> str | None:
    """What is wrong with an image and its label map, as the beginning of a sentence."""
    image, label = pair
    try:
        with Image.open(image) as opened:
            size = opened.size
        end = _END.get(Path(image).suffix.lower())
        if end and end not in _tail(image):
            return f'image {image} is cut short: its end is missing'
    except OSError:
        return f'image {image} cannot be read: it is damaged or no image'
    try:
        with Image.open(label) as opened:
            if opened.mode not in ('L', 'P', '1'):
                return f'label map {label} has mode {opened.mode}, not 8-bit single-channel'
            values = np.asarray(opened)
    except (OSError, SyntaxError):
        return f'label map {label} cannot be read: it is damaged or no image'
    if values.shape[::-1] != size:
        height, width = values.shape
        return f'label map {label} is {width}x{height}, its image {size[0]}x{size[1]}'
    present = np.flatnonzero(np.bincount(values.reshape(-1).astype(np.uint8), minlength=256))
    wrong = [int(v) for v in present if v not in allowed]
    if wrong:
        return f'label {wrong[0]} in {label} is no class (allowed {_ranges(allowed)})'
    return None


def _tail(path: str) -> bytes:
    with open(path, 'rb') as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 64))
        return file.read()


def _ranges(allowed: frozenset[int]) -> str:
    classes = sorted(allowed)
    if classes[:-1] == list(range(len(classes) - 1)):
        return f'0..{classes[-2]} and {classes[-1]}'
    return ', '.join(map(str, classes))
