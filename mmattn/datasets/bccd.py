"""BCCD, images of blood cells with boxes: from Pascal VOC to COCO files.

Source: Shenggan/BCCD_Dataset, MIT licence.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from mmattn.errors import DataError
from mmattn.progress import track

from .image_io import open_image
from .xml_files import read_xml

# Images per split of the original.
COUNTS = {'train': 205, 'val': 87, 'test': 72}
CLASSES = ('RBC', 'WBC', 'Platelets')  # category ids 1, 2, 3
_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def prepare_bccd(
    root: str | Path, out: str | Path, log: Callable[[str], None] = print
) -> dict[str, int]:
    """Copy the images to `out/images` and write `out/annotations/{train,val,test}.json`.

    Boxes are [xmin - 1, ymin - 1, xmax - xmin, ymax - ymin]: VOC counts pixels from 1, and mmdet's
    `XMLDataset` subtracts 1 from all four corners, so both ways train on the same boxes. A box
    without area is dropped and named; with widths of xmax - xmin + 1 it would become one pixel.

    Args:
        root: folder `BCCD` of the original, or its parent.
        out: folder of the prepared set.
        log: called with a line per split and per dropped box.

    Returns:
        images per split.

    Raises:
        DataError: a file is missing or malformed.
    """
    root, out, counts = Path(root), Path(out), {}
    root = root / 'BCCD' if (root / 'BCCD').is_dir() else root
    lists = {split: root / 'ImageSets' / 'Main' / f'{split}.txt' for split in COUNTS}
    for path in root / 'Annotations', root / 'JPEGImages', *lists.values():
        if not path.exists():
            raise DataError(
                f'BCCD: {path} does not exist. Get Shenggan/BCCD_Dataset from GitHub and name it '
                'with --root.'
            )
    for folder in 'images', 'annotations':
        (out / folder).mkdir(parents=True, exist_ok=True)
    images = boxes = 0  # over all splits, so that no id occurs twice
    for split, path in lists.items():
        stems = _text(path).split()
        coco = dict(
            images=[],
            annotations=[],
            categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)],
        )
        for stem in track(stems, total=len(stems), title=f'{split} -> {out}'):
            images += 1
            coco['images'].append(dict(id=images, **_copy(root, out, stem)))
            for annotation in _read(root / 'Annotations' / f'{stem}.xml', log):
                boxes += 1
                coco['annotations'].append(dict(id=boxes, image_id=images, **annotation))
        (out / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
        counts[split] = len(stems)
        note = '' if len(stems) == COUNTS[split] else f' (the original set has {COUNTS[split]})'
        log(f'{split}: {len(stems)} images{note}, {len(coco["annotations"])} boxes')
    licence = next((p for p in (root / 'LICENSE', root.parent / 'LICENSE') if p.is_file()), None)
    if licence and licence.resolve() != (out / 'LICENSE').resolve():
        shutil.copyfile(licence, out / 'LICENSE')
    return counts


def _copy(root: Path, out: Path, stem: str) -> dict:
    """Copy an image; returns its entry in the COCO file."""
    name = f'{stem}.jpg'
    source = root / 'JPEGImages' / name
    if Path(name).name != name:
        raise DataError(f'BCCD: image {source} leaves its folder. Get the set again.')
    if '\0' not in name and not source.exists():
        raise DataError(f'BCCD: image {source} is missing. Get the set again.')
    with open_image(source) as image:
        width, height = image.size
        shutil.copyfile(source, out / 'images' / name)
    return dict(file_name=name, width=width, height=height)


def _read(path: Path, log: Callable[[str], None]) -> list[dict]:
    """The boxes of a VOC file as COCO annotations."""
    if not path.exists():
        raise DataError(f'BCCD: {path} is missing. Get the set again.')
    annotations = []
    for number, item in enumerate(read_xml(path).findall('object')):
        name = item.findtext('name')
        if name not in CLASSES:
            raise DataError(f'{path}: object {number} is {name!r}, allowed {CLASSES}.')
        try:
            corners = [int(float(item.findtext(f'bndbox/{key}'))) for key in _CORNERS]
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f'{path}: object {number} ({name}) has no box of 4 numbers.') from error
        xmin, ymin, xmax, ymax = corners
        width, height = xmax - xmin, ymax - ymin
        if width <= 0 or height <= 0:
            log(f'{path.name}: dropped object {number}, {name} {corners}, which has no area')
            continue
        box = [xmin - 1, ymin - 1, width, height]
        annotations.append(
            dict(category_id=CLASSES.index(name) + 1, bbox=box, area=width * height, iscrowd=0)
        )
    return annotations


def _text(path: Path) -> str:
    try:
        return path.read_text('utf-8')
    except FileNotFoundError as error:
        raise DataError(f'BCCD: {path} is missing. Get the set again.') from error
    except UnicodeDecodeError as error:
        raise DataError(f'{path} is no text: {error.reason}. Get it again.') from error
