"""Writing an imported set: images, COCO files or label maps, all below one folder."""

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from mmattn.errors import DataError
from mmattn.progress import track

from . import geometry
from .masks import colour_text
from .problems import Problems
from .records import IGNORED, SourceImage, SourceSet

Sizes = dict[Path, tuple[int, int]]  # width and height by the path of the image


def target_names(
    images: list[SourceImage], relative: Callable[[Path], str], problems: Problems
) -> dict[Path, str]:
    """File names of the images in the imported set; without folders where they differ without.

    Args:
        images: all images.
        relative: path of a file relative to the source, with /.
        problems: names that are not plain ASCII, or that have to change, are added to it.
    """
    names = [image.path.name.casefold() for image in images]
    is_flat = len(set(names)) == len(names)
    targets: dict[Path, str] = {}
    taken: set[str] = set()
    for image in images:
        name = image.path.name if is_flat else relative(image.path)
        if not name.isascii():
            problems.add('name', image.path, '', '')
        clean = ''.join(c if c.isprintable() and c != '\\' else '_' for c in name).strip()
        clean = clean.encode('utf-8', 'replace').decode().replace('?', '_')
        stem, suffix = os.path.splitext(clean)
        count = 1
        while clean.casefold() in taken:
            count += 1
            clean = f'{stem}_{count}{suffix}'
        if clean != name:
            problems.add('renamed', image.path, '', f'is {clean}')
        taken.add(clean.casefold())
        targets[image.path] = clean
    return targets


def link_images(images: list[SourceImage], targets: dict[Path, str], out: Path) -> None:
    """Link the images into `out`, or copy them where that cannot be."""
    for image in track(images, total=len(images), title='linking images'):
        target = out / targets[image.path]
        target.parent.mkdir(parents=True, exist_ok=True)
        source = os.path.realpath(image.path)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, target)


def write_coco(
    splits: dict[str, list[SourceImage]],
    sizes: Sizes,
    targets: dict[Path, str],
    classes: list[str],
    out: Path,
    *,
    masks: bool,
) -> dict[str, Counter]:
    """Write `out/{train,val,test}.json`; ids are unique over all of them.

    Returns:
        objects per class, by split.
    """
    number = count = 0
    numbers = {name: i for i, name in enumerate(classes, 1)}
    counts: dict[str, Counter] = {}
    out.mkdir(parents=True, exist_ok=True)
    for split, images in splits.items():
        coco = dict(
            images=[],
            annotations=[],
            categories=[dict(id=i, name=name) for name, i in numbers.items()],
        )
        counts[split] = Counter()
        for image in images:
            number += 1
            width, height = sizes[image.path]
            name = targets[image.path]
            coco['images'].append(dict(id=number, file_name=name, width=width, height=height))
            for item in image.objects:
                count += 1
                counts[split][item.name] += 1
                x1, y1, x2, y2 = item.box
                box = [x1, y1, geometry.rounded(x2 - x1), geometry.rounded(y2 - y1)]
                entry = dict(id=count, image_id=number, category_id=numbers[item.name], bbox=box)
                entry['area'] = geometry.rounded(box[2] * box[3])
                if masks:
                    entry['segmentation'] = item.mask or item.polygons
                    area = geometry.mask_bounds(item.mask)[1] if item.mask else (
                        geometry.area(item.polygons)
                    )  # fmt: skip
                    entry['area'] = geometry.rounded(area)
                coco['annotations'].append(entry | dict(iscrowd=int(item.is_crowd)))
        (out / f'{split}.json').write_text(json.dumps(coco), encoding='utf-8')
    return counts


def write_labels(
    images: list[SourceImage],
    sizes: Sizes,
    label_names: dict[Path, str],
    found: SourceSet,
    classes: list[str],
    out: Path,
    problems: Problems,
) -> dict[Path, np.ndarray]:
    """Write a label map of 8 bits for each image, from that of the source or from its objects.

    Args:
        images: all images.
        sizes: their sizes.
        label_names: file names of the label maps.
        found: the source.
        classes: class names, by which objects are numbered.
        out: folder of the label maps.
        problems: label maps that do not fit are added to it.

    Returns:
        (256,) pixels per label of each image whose label map is written.
    """

    def write(image: SourceImage) -> np.ndarray | tuple[str, str]:
        size = sizes[image.path]
        try:
            labels = (
                _draw(image, size, classes) if found.read_labels is None
                else found.read_labels(image.labels)
            )  # fmt: skip
        except DataError as error:
            return 'file', str(error).rstrip('.')
        if labels.shape != size[::-1]:
            shape = 'x'.join(map(str, labels.shape[::-1]))
            return 'size', f'label map is {shape}, its image {size[0]}x{size[1]} as it is read'
        if labels.min() < 0:
            return 'class', _describe_values(labels, found)
        target = out / label_names[image.path]
        target.parent.mkdir(parents=True, exist_ok=True)
        labels = labels.astype(np.uint8)
        Image.fromarray(labels).save(target)
        return np.bincount(labels.ravel(), minlength=256)

    counts = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoding frees the GIL
        pairs = zip(images, pool.map(write, images))
        title = 'writing label maps'
        for image, result in track(pairs, total=len(images), title=title):
            if isinstance(result, tuple):
                kind, text = result
                problems.add(kind, image.labels or image.file, '', text)
            else:
                counts[image.path] = result
    return counts


def _draw(image: SourceImage, size: tuple[int, int], classes: list[str]) -> np.ndarray:
    """The label map (H, W) of the objects of an image; later ones cover earlier ones."""
    labels = np.zeros(size[::-1], np.int16)
    for item in image.objects:
        mask = geometry.decode(item.polygons, item.mask, size)
        labels[mask] = IGNORED if item.is_crowd else classes.index(item.name)
    return labels


def _describe_values(labels: np.ndarray, found: SourceSet) -> str:
    """Labels that are no classes, with their pixels."""
    values, pixels = np.unique(-1 - labels[labels < 0], return_counts=True)
    name = colour_text if found.has_colours else str
    shown = ', '.join(f'{name(int(v))} ({n} px)' for v, n in zip(values[:8], pixels))
    what = 'colours' if found.has_colours else 'labels'
    return f'{what} {shown} are no classes'


def write_list(images: list[SourceImage], names: dict[Path, str], path: Path) -> None:
    """Write the names of images, one a line, as MMSegmentation's `ann_file` lists them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{names[image.path]}\n' for image in images), encoding='utf-8')


def remove_folder(folder: Path) -> None:
    """Remove a folder of an import that did not end, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
