"""Checking a data set before the first step, instead of failing hours into it."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mmattn.datasets import files
from mmattn.datasets.files import Fault, Looked
from mmattn.engine.config import dataset_leaves
from mmattn.errors import DataError, UsageError, printable
from mmattn.progress import track

_VERSION = 2  # of the check of label maps: a verdict of another version does not count
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmattn' / 'checks'
_HOW_TO_GET = {
    'CityscapesDataset': 'Get it from cityscapes-dataset.com, then run: '
    'python tools/prepare_data.py cityscapes --root DIR',
    'ADE20KDataset': 'Get ADEChallengeData2016.zip of the MIT scene parsing benchmark, then run: '
    'python tools/prepare_data.py ade20k --root DIR',
    'CamVidDataset': 'Run: python tools/prepare_data.py camvid --root DIR',
}
_CONVERTED = ('CityscapesDataset', 'CamVidDataset')  # prepare_data.py writes their labels anew
_HOW_TO_MAKE_STREET = 'Make it with: python tools/prepare_data.py street'
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
    try:
        return DATASETS.build(dict(leaf, lazy_init=True, pipeline=[]))
    except (TypeError, KeyError, ValueError, AssertionError, RuntimeError, OSError) as error:
        text = str(error).strip() or f'{type(error).__name__} without a word'
        raise DataError(
            f'data set {leaf["type"]} with data_root={leaf.get("data_root")} cannot be made: {text}'
        ) from error


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


class LabelMaps:
    """The images and label maps of a data set as the config has it.

    Args:
        dataset: of MMSegmentation's kind, lazily built.
        leaf: its config.
        where: the key of its data loader.

    Attributes:
        name: of the data set, for messages.
        folder: of the images.
        pairs: paths of an image and its label map, where both exist.
        missing: a fault for every file that is not there; its kind says what images lack.
        classes: names of the classes.
        table: (256,) what training makes of a label: a class, 255 if ignored, -1 if refused.

    Raises:
        DataError: a folder does not exist or holds no image.
        UsageError: the config contradicts itself.
    """

    def __init__(self, dataset, leaf: dict, where: str) -> None:
        self.kind, self.train = leaf['type'].split('.')[-1], where.startswith('train')
        self.name = f'data set {self.kind} ({where})'
        self.remedy = _HOW_TO_GET.get(self.kind, f'Set {where.split(",")[0]}.dataset.data_root.')
        if 'street' in str(dataset.data_root):
            self.remedy = _HOW_TO_MAKE_STREET
        self.classes = dataset.metainfo.get('classes')
        if not self.classes:
            raise UsageError(f'{self.name} has no classes. Set metainfo=dict(classes=(...)).')
        self.reduced = bool(dataset.reduce_zero_label)
        for step in leaf.get('pipeline', []):
            asked = step.get('reduce_zero_label')
            if asked is not None and bool(asked) != self.reduced:
                raise UsageError(
                    f'{self.name}: {step["type"]} has reduce_zero_label={asked}, the data set has '
                    f'{self.reduced}. Set it in the data set alone.'
                )
        self.folder, self.label_folder = (
            Path(dataset.data_prefix.get(key) or '.') for key in ('img_path', 'seg_map_path')
        )
        for folder in Path(dataset.data_root or '.'), self.folder, self.label_folder:
            if not folder.is_dir():
                raise DataError(f'{self.name}: {folder} does not exist. {self.remedy}')
        if dataset.ann_file and not os.path.exists(dataset.ann_file):
            raise DataError(f'{self.name}: {dataset.ann_file} does not exist. Set ann_file.')
        pairs = [(d['img_path'], d['seg_map_path']) for d in dataset.load_data_list()]
        if dataset.ann_file:
            for pair in pairs:
                self._check_inside(pair, dataset.ann_file)
        if not pairs:
            raise DataError(
                f'{self.name}: no image *{dataset.img_suffix} below {self.folder}. {self.remedy}'
            )
        self.count, self.missing, self.pairs = len(pairs), [], []
        for image, label in pairs:
            if not os.path.isfile(image):
                self.missing.append(Fault('do not exist', f'{image} is missing'))
            elif not os.path.isfile(label):
                self.missing.append(Fault('have no label map', f'{label} is missing'))
            else:
                self.pairs.append((image, label))
        self.suffix, self.listed = dataset.seg_map_suffix, bool(dataset.ann_file)
        self.known = len(dataset.label_map or self.classes)  # classes in the files
        self.table = self._table(dataset)

    def _check_inside(self, pair: tuple[str, str], file: str) -> None:
        """Refuse a name in a list of images that leads out of the folder."""
        for path, folder in zip(pair, (self.folder, self.label_folder)):
            if not os.path.abspath(path).startswith(os.path.join(os.path.abspath(folder), '')):
                raise DataError(f'{self.name}: {path}, listed in {file}, leaves {folder}.')

    def _table(self, dataset) -> np.ndarray:
        first = int(self.reduced)
        known = range(min(self.known, 256 - first))
        table = np.full(256, -1)
        table[first : first + len(known)] = [(dataset.label_map or {}).get(i, i) for i in known]
        table[:first] = 255
        if 0 <= dataset.ignore_index < 256:
            table[dataset.ignore_index] = 255
        return table

    def scan(self, pool: Executor, whole: bool = False) -> Iterator[Looked]:
        """Look at every pair, decoding the images if `whole`."""
        work = partial(files.look, table=self.table, whole=whole)
        found = pool.map(work, self.pairs, chunksize=8)
        return track(found, total=len(self.pairs), title=f'checking {self.folder}')

    def judge(self, pixels: np.ndarray) -> tuple[list[Fault], list[str]]:
        """What all labels together say against the config.

        Args:
            pixels: (256,) how many pixels of the whole set have each label.

        Returns:
            faults, and warnings, a sentence each.
        """
        present, total = set(np.flatnonzero(pixels).tolist()), int(pixels.sum())
        if not total or (self.table[list(present)] < 0).any():
            return [], []
        faults, warnings = [], []
        first, last = self.classes[0], self.known
        share = f'{100 * pixels[0] / total:.1f} % of the pixels'
        if present == {0, 255} and not self.reduced and last > 1:
            text = (
                f'the label maps of {self.folder} hold nothing but 0 and 255, as black and white '
                f'masks do, but 0 means {first!r} and 255 is ignored'
            )
            if last > 2:
                faults.append(Fault('mask', text))
            else:
                warnings.append(f'{self.name}: {text}. {self.cure("mask")}')
        elif not (self.table[list(present)] != 255).any():
            text = f'no pixel of the label maps of {self.folder} has a class: all are ignored'
            if self.train:
                faults.append(Fault('ignored', text))
            else:
                warnings.append(f'{self.name}: {text}.')
        elif self.reduced and last - 1 in present and last not in present:
            if pixels[0] * (last + 1) > total:  # more than a label has on average
                warnings.append(
                    f'{self.name}: label {last} never occurs, and reduce_zero_label=True ignores '
                    f'label 0, {share}. If 0 means {first!r}, set reduce_zero_label=False in every '
                    'data set.'
                )
        return faults, warnings

    def cure(self, kind: str, wrong: Iterable[int] = ()) -> str:
        """What to do about faults of a kind; `wrong` are the labels that are no classes."""
        if kind == 'mask':
            return f'Write the number of its class into each pixel, 0..{self.known - 1}.'
        if kind == 'ignored':
            return f'Is ignore_index or reduce_zero_label set wrongly? {self.remedy}'
        if kind in ('file', 'size'):
            return 'Replace the file.'
        if kind not in ('labels', 'format'):
            return self.remedy
        if self.suffix.endswith(('_labelIds.png', '_instanceIds.png')):
            return (
                f'Leave seg_map_suffix={self.suffix!r} out: train ids are in *_labelTrainIds.png, '
                'made by: python tools/prepare_data.py cityscapes --root DIR'
            )
        if {*wrong} == {self.known} and not self.reduced and self.kind not in _CONVERTED:
            return (
                'If 0 stands for what has no class, set reduce_zero_label=True in every data set; '
                f'if {self.known} does, write 255 instead.'
            )
        if self.known == 19 and 18 < max(wrong, default=0) < 34 and self.kind not in _CONVERTED:
            return (
                'They look like the label ids of Cityscapes. Make train ids with: '
                'python tools/prepare_data.py cityscapes --root DIR'
            )
        return f'The labels must be train ids. {self.remedy}'


def _check_label_maps(maps: LabelMaps) -> list[str]:
    """Look at all files, or at the verdict of an earlier look; returns warnings."""
    if maps.missing:
        kind, text = maps.missing[0]
        count = sum(fault.kind == kind for fault in maps.missing)
        raise DataError(
            f'{maps.name}: {count} of {maps.count} images {kind}, e.g. {text}. {maps.remedy}'
        )
    cache = cached(maps)
    try:
        return json.loads(cache.read_text())['warnings']
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no verdict yet
    faults, pixels = [], np.zeros(256, np.int64)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoding frees the GIL
        for found in maps.scan(pool):
            faults += found.faults
            pixels += 0 if found.pixels is None else found.pixels
    overall, warnings = maps.judge(pixels)
    faults += overall
    if faults:
        kind, text = faults[0]
        rest = len(faults) - 1
        more = f' (and {rest} more: python tools/check_data.py CONFIG lists all)' if rest else ''
        wrong = np.flatnonzero((pixels > 0) & (maps.table < 0)).tolist()
        raise DataError(f'{text}{more}. {maps.cure(kind, wrong)}')
    keep(cache, maps, warnings)
    return warnings


def cached(maps: LabelMaps) -> Path:
    """Where the verdict on these files is kept."""
    known = [_VERSION, maps.train, maps.table.tolist(), maps.classes]
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
