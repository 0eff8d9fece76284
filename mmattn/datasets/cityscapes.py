"""Checking a Cityscapes download and making its train ids with cityscapesScripts' class table."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from mmattn.errors import DataError
from mmattn.progress import track

# Images per split of the fine annotations; cityscapes-dataset.com, "Dataset Overview".
COUNTS = {'train': 2975, 'val': 500, 'test': 1525}
PACKAGES = 'leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of cityscapes-dataset.com'


def prepare_cityscapes(root: str | Path, say: Callable[[str], None] = print) -> dict[str, int]:
    """Check what lies under `root` and write the missing `*_labelTrainIds.png`.

    Args:
        root: the folder that holds `leftImg8bit` and `gtFine`.
        say: told what was found, a line per split.

    Returns:
        images per split.

    Raises:
        DataError: a folder or label map is missing, or a label map cannot be read.
    """
    root = Path(root)
    for folder in root, root / 'leftImg8bit', root / 'gtFine':
        if not folder.is_dir():
            raise DataError(f'Cityscapes: {folder} does not exist. Unpack {PACKAGES} into {root}.')
    counts, todo = {}, []
    for split, expected in COUNTS.items():
        images = sorted((root / 'leftImg8bit' / split).glob('*/*_leftImg8bit.png'))
        counts[split] = len(images)
        bases = [
            str(root / 'gtFine' / split / p.parent.name / p.name.removesuffix('_leftImg8bit.png'))
            for p in images
        ]
        labels = [f'{base}_gtFine_labelIds.png' for base in bases]
        without = [p for p in labels if not Path(p).is_file()]
        if without and split != 'test':  # the labels of the test split are not public
            raise DataError(
                f'Cityscapes: {len(without)} of {len(images)} {split} images have no label map, '
                f'e.g. {without[0]} is missing. Unpack {PACKAGES} into {root}.'
            )
        todo += [p for p in labels if Path(p).is_file() and not _target(p).is_file()]
        note = '' if len(images) == expected else f' (the original set has {expected})'
        say(f'{split}: {len(images)} images{note}')
    if not counts['train'] or not counts['val']:
        raise DataError(
            f'Cityscapes: no image in {root}/leftImg8bit. Unpack {PACKAGES} into {root}.'
        )
    if todo:
        with ThreadPoolExecutor() as pool:  # decoding and encoding free the GIL
            for _ in track(pool.map(_make_train_ids, todo), total=len(todo), title='train ids'):
                pass
    return counts


def _target(label: str) -> Path:
    return Path(label.replace('_labelIds.png', '_labelTrainIds.png'))


def _make_train_ids(path: str) -> None:
    from cityscapesscripts.helpers.labels import labels

    table = np.full(256, 255, np.uint8)
    for label in labels:
        if label.id >= 0 and label.trainId >= 0:
            table[label.id] = label.trainId
    try:
        with Image.open(path) as image:
            ids = np.asarray(image)
    except OSError as error:
        raise DataError(f'label map {path} cannot be read: it is damaged or no image.') from error
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise DataError(f'label map {path} is not 8-bit single-channel.')
    target = _target(path)
    part = target.with_suffix('.part')
    Image.fromarray(table[ids]).save(part, format='PNG')
    part.replace(target)
