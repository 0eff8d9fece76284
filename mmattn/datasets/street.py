"""`street`: generated street scenes in the Cityscapes layout and as COCO JSON.

A scene is a small 3-D world (a road between rows of houses, people, vehicles, trees, poles) seen by
a pinhole camera and painted from far to near, so that perspective, occlusion and scale are those
of a photograph.
"""

import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from mmattn.errors import UsageError
from mmattn.progress import track

from .street_labels import ID, THINGS, TRAIN_ID, annotations
from .street_scene import SPLITS, render

__all__ = ['SPLITS', 'generate']


def generate(
    root: str | Path,
    *,
    images: dict[str, int],
    size: tuple[int, int] = (512, 256),
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write a `street` data set.

    Args:
        root: folder to create, in the Cityscapes layout.
        images: number of scenes per split, e.g. `dict(train=100, val=20)`.
        size: width and height in pixels, at least 64 x 32.
        seed: random seed of the whole set.
        overwrite: replace an existing `street` set.

    Raises:
        UsageError: size or number of scenes out of range; `root` holds other files, or a set while
            `overwrite` is off.
    """
    root, (width, height) = Path(root), size
    if width < 64 or height < 32:
        raise UsageError(f'street: size {width}x{height} is too small. Use 64x32 or more.')
    if min(images.values()) < 0 or not any(images.values()):
        raise UsageError(f'street: {images} scenes. Use 0 or more of each, and one at least.')
    marker = root / 'street.json'
    if root.exists() and any(root.iterdir()):
        if not marker.exists():
            raise UsageError(f'street: {root} holds other files. Choose another folder with --out.')
        if not overwrite:
            raise UsageError(f'street: {root} holds a set already. Use --overwrite to replace it.')
        shutil.rmtree(root)
    for split in images:
        for kind in 'leftImg8bit', 'gtFine':
            (root / kind / split / 'street').mkdir(parents=True)
    (root / 'annotations').mkdir()
    marker.write_text(json.dumps(dict(images=images, size=size, seed=seed)) + '\n')
    jobs = [(split, index) for split, count in images.items() for index in range(count)]
    work = partial(_write, str(root), seed, width, height)
    workers = min(len(os.sched_getaffinity(0)), max(len(jobs), 1))
    # spawn: a fork of a process that runs threads, as torch does, can hang
    with ProcessPoolExecutor(workers, mp_context=get_context('spawn')) as pool:
        entries = pool.map(work, jobs, chunksize=4)
        entries = list(track(entries, total=len(jobs), title=f'street -> {root}'))
    results = dict(zip(jobs, entries))
    categories = [dict(id=ID[name], name=name) for name in THINGS]
    for split, count in images.items():
        coco = dict(images=[], annotations=[], categories=categories)
        for index in range(count):
            entry, things = results[split, index]
            coco['images'].append(dict(id=index + 1, **entry))
            for thing in things:
                ident = len(coco['annotations']) + 1
                coco['annotations'].append(dict(id=ident, image_id=index + 1, **thing))
        path = root / 'annotations' / f'instancesonly_filtered_gtFine_{split}.json'
        path.write_text(json.dumps(coco))


def _write(
    root: str, seed: int, width: int, height: int, job: tuple[str, int]
) -> tuple[dict, list]:
    """Render one scene and write its four files; returns its COCO entries."""
    split, index = job
    cv2.setNumThreads(1)
    image, ids = render(seed, split, index, width, height)
    stem = f'street_{index:06d}_000000'
    photos, labels = (Path(root, kind, split, 'street') for kind in ('leftImg8bit', 'gtFine'))
    classes = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
    arrays = {
        photos / f'{stem}_leftImg8bit.png': image,
        labels / f'{stem}_gtFine_labelIds.png': classes,
        labels / f'{stem}_gtFine_labelTrainIds.png': TRAIN_ID[classes],
        labels / f'{stem}_gtFine_instanceIds.png': ids.astype(np.uint16),
    }
    for path, array in arrays.items():
        if not cv2.imwrite(str(path), array, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
            raise OSError(f'cannot write {path}')
    entry = dict(file_name=f'street/{stem}_leftImg8bit.png', width=width, height=height)
    return entry, annotations(ids)
