"""Checking a Cityscapes download, writing its train ids and its instances as COCO JSON.

Classes and ids are those of cityscapesScripts' table, helpers/labels.py.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coder

from mmattn.errors import DataError
from mmattn.progress import track
from mmattn.text import some

from .image_io import open_image

# Images per city of the fine annotations, as in the file lists of HRNet-Semantic-Segmentation.
CITIES = {
    'train': dict(
        aachen=174, bochum=96, bremen=316, cologne=154, darmstadt=85, dusseldorf=221, erfurt=109,
        hamburg=248, hanover=196, jena=119, krefeld=99, monchengladbach=94, strasbourg=365,
        stuttgart=196, tubingen=144, ulm=95, weimar=142, zurich=122,
    ),
    'val': dict(frankfurt=267, lindau=59, munster=174),
    'test': dict(berlin=544, bielefeld=181, bonn=46, leverkusen=58, mainz=298, munich=398),
}  # fmt: skip
COUNTS = {split: sum(cities.values()) for split, cities in CITIES.items()}  # 2975, 500, 1525
PACKAGES = 'leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of cityscapes-dataset.com'


def prepare_cityscapes(root: str | Path, log: Callable[[str], None] = print) -> dict[str, int]:
    """Check a download; write train ids and instance JSON where they are missing.

    Train ids are `*_labelTrainIds.png` next to the label maps, instances
    `annotations/instancesonly_filtered_gtFine_{train,val}.json`, see `instances`.

    Args:
        root: folder that holds `leftImg8bit` and `gtFine`.
        log: called with a line per split and per incomplete city.

    Returns:
        images per split.

    Raises:
        DataError: a folder or a file is missing, or a label map cannot be read.
    """
    root = Path(root)
    for folder in root, root / 'leftImg8bit', root / 'gtFine':
        if not folder.is_dir():
            raise DataError(f'Cityscapes: {folder} does not exist. Unpack {PACKAGES} into {root}.')
    stems = {split: _stems(root, split, log) for split in CITIES}
    counts = {split: len(names) for split, names in stems.items()}
    if not counts['train'] or not counts['val']:
        raise DataError(
            f'Cityscapes: no image in {root}/leftImg8bit. Unpack {PACKAGES} into {root}.'
        )
    _check_partners(root, stems)
    labels = [_label_path(root, split, stem) for split in stems for stem in stems[split]]
    todo = [p for p in labels if os.path.isfile(p) and not _train_id_path(p).is_file()]
    _run_parallel(_write_train_ids, todo, 'train ids')
    for split in 'train', 'val':
        _write_instances(root, split, stems[split], log)
    return counts


def _stems(root: Path, split: str, log: Callable[[str], None]) -> list[str]:
    """The images of a split as 'city/name' without their ending, sorted."""
    folder, ending = root / 'leftImg8bit' / split, '_leftImg8bit.png'
    names = sorted(f'{p.parent.name}/{p.name}' for p in folder.glob(f'*/*{ending}'))
    note = '' if len(names) == COUNTS[split] else f' (the original set has {COUNTS[split]})'
    log(f'{split}: {len(names)} images{note}')
    cities = Counter(name.split('/')[0] for name in names)
    if cities.keys() & CITIES[split].keys():
        for city, expected in CITIES[split].items():
            if cities[city] != expected:
                log(f'{split}/{city}: {cities[city]} images (the original set has {expected})')
    return [name.removesuffix(ending) for name in names]


def _label_path(root: Path, split: str, stem: str, kind: str = 'labelIds') -> str:
    return str(root / 'gtFine' / split / f'{stem}_gtFine_{kind}.png')


def _check_partners(root: Path, stems: dict[str, list[str]]) -> None:
    """Refuse images without a label map and label maps without an image, of any split at once."""
    problems = []

    def report_missing(paths: list[str], what: str) -> None:
        if paths:
            problems.append(f'{len(paths)} {what}, e.g. {some(paths)}')

    for split in 'train', 'val':  # the labels of the test split are not public
        labels, ids = (
            [_label_path(root, split, stem, kind) for stem in stems[split]]
            for kind in ('labelIds', 'instanceIds')
        )
        images = f'of {len(labels)} {split} images have no'
        report_missing([p for p in labels if not os.path.isfile(p)], f'{images} label map')
        existing = (root / 'gtFine' / split).glob('*/*_gtFine_labelIds.png')
        report_missing(
            sorted({str(p) for p in existing} - {*labels}), f'{split} label maps have no image'
        )
        absent = [p for p in ids if not os.path.isfile(p)]
        if len(absent) < len(ids):  # without any, the set is for segmentation alone
            report_missing(absent, f'{images} map of instances')
    if problems:
        raise DataError(f'Cityscapes: {"; ".join(problems)}. Unpack {PACKAGES} into {root}.')


def _run_parallel(work: Callable, items: list, title: str) -> list:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoding frees the GIL
        return list(track(pool.map(work, items), total=len(items), title=title)) if items else []


def _train_id_path(label: str) -> Path:
    return Path(label.replace('_labelIds.png', '_labelTrainIds.png'))


def _write_train_ids(path: str) -> None:
    from cityscapesscripts.helpers.labels import labels

    table = np.full(256, 255, np.uint8)
    for label in labels:
        if label.id >= 0 and label.trainId >= 0:
            table[label.id] = label.trainId
    ids = _read(path, 'label map')
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise DataError(f'label map {path} is not 8-bit single-channel.')
    target = _train_id_path(path)
    part = target.with_suffix('.part')
    Image.fromarray(table[ids]).save(part, format='PNG')
    part.replace(target)


def _read(path: str, what: str) -> np.ndarray:
    with open_image(path, what) as image:
        image.verify()  # Pillow decodes without checking the checksums
    with open_image(path, what) as image:
        return np.asarray(image)


def _write_instances(root: Path, split: str, stems: list[str], log: Callable[[str], None]) -> None:
    """Write the COCO JSON of a split, unless there is a current one of the same images."""
    from cityscapesscripts.helpers.labels import labels

    sources = [_label_path(root, split, stem, 'instanceIds') for stem in stems]
    if not os.path.isfile(sources[0]):
        log(f'{split}: no *_gtFine_instanceIds.png, so no JSON of instances')
        return
    target = root / 'annotations' / f'instancesonly_filtered_gtFine_{split}.json'
    names = [f'{stem}_leftImg8bit.png' for stem in stems]
    if _is_current(target, names, sources):
        log(f'{split}: {target} is there')
        return
    images = [root / 'leftImg8bit' / split / name for name in names]
    entries = _run_parallel(
        _image_and_instances, list(zip(images, sources)), f'instances of {split}'
    )
    coco = dict(
        images=[],
        annotations=[],
        categories=[dict(id=x.id, name=x.name) for x in labels if _is_thing(x)],
    )
    for number, (name, (size, things)) in enumerate(zip(names, entries), 1):
        coco['images'].append(dict(id=number, file_name=name, **size))
        for thing in things:
            ident = len(coco['annotations']) + 1  # pycocotools takes id 0 for a miss
            coco['annotations'].append(dict(id=ident, image_id=number, **thing))
    target.parent.mkdir(exist_ok=True)
    part = target.with_suffix('.part')
    part.write_text(json.dumps(coco))
    part.replace(target)
    groups = sum(thing['iscrowd'] for thing in coco['annotations'])
    things = len(coco['annotations']) - groups
    log(f'{split}: {things} instances and {groups} groups in {target}')


def _is_current(target: Path, names: list[str], sources: list[str]) -> bool:
    """Whether a JSON file lists these images and is not older; archives keep old file times."""
    try:
        if max(map(os.path.getmtime, sources)) > os.path.getmtime(target):
            return False
        return [i['file_name'] for i in json.loads(target.read_text())['images']] == names
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_thing(label) -> bool:
    """Whether a row of the label table is one of the 8 classes of the instance benchmark."""
    return label.hasInstances and not label.ignoreInEval


def _image_and_instances(paths: tuple[Path, str]) -> tuple[dict, list[dict]]:
    image, source = paths
    ids = _read(source, 'map of instances')
    if ids.ndim != 2 or ids.dtype.kind not in 'iu':
        raise DataError(f'map of instances {source} is not single-channel.')
    with open_image(image) as opened:
        size = opened.size
    if size != ids.shape[::-1]:
        ids_size = 'x'.join(map(str, ids.shape[::-1]))
        raise DataError(f'map of instances {source} is {ids_size}, its image {size[0]}x{size[1]}.')
    try:
        return dict(width=size[0], height=size[1]), instances(ids)
    except ValueError as error:
        raise DataError(f'map of instances {source}: {error}. Get it again.') from error


def instances(ids: np.ndarray) -> list[dict]:
    """The things in a map of Cityscapes' instance ids as COCO annotations, masks as RLE.

    An id is 1000 * class + number; a group of objects that are not separated has the class alone as
    id, and becomes `iscrowd`. Box xywh and area in pixels are those of the mask.

    Args:
        ids: (H, W) integers.

    Raises:
        ValueError: an id of no class.
    """
    from cityscapesscripts.helpers.labels import id2label

    height, width = ids.shape
    column = np.ascontiguousarray(ids.T).reshape(-1).astype(np.int64)  # RLE runs down the columns
    starts = np.flatnonzero(np.diff(column, prepend=column[0] - 1))
    lengths, owners = np.diff(starts, append=column.size), column[starts]
    annotations = []
    for ident in np.unique(owners).tolist():
        label = id2label.get(ident // 1000 if ident >= 1000 else ident)
        if label is None:
            raise ValueError(f'instance id {ident} belongs to no class of Cityscapes')
        if not _is_thing(label):
            continue
        start, length = starts[owners == ident], lengths[owners == ident]
        end = start + length
        counts = np.column_stack([start - np.append(0, end[:-1]), length]).reshape(-1)
        rest = column.size - end[-1]
        counts = counts.tolist() + ([int(rest)] if rest else [])
        rle = coder.frPyObjects(dict(size=[height, width], counts=counts), height, width)
        annotations.append(
            dict(
                category_id=label.id,
                segmentation=dict(size=[height, width], counts=rle['counts'].decode()),
                bbox=coder.toBbox(rle).tolist(),
                area=int(length.sum()),
                iscrowd=int(ident < 1000),
            )
        )
    return annotations
