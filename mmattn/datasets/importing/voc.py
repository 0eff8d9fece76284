"""Pascal VOC: an XML file per image with boxes, and `ImageSets/Main` with the splits.

Pixels are counted from 1, so 1 is subtracted from all corners, as mmdet's `XMLDataset` does; not
where a corner is 0, which a set that counts from 1 does not have.
"""

import xml.etree.ElementTree as ET
from pathlib import Path

from . import geometry
from .records import SPLITS, ReadOptions, SourceImage, SourceObject, SourceSet
from .source import IMAGE_SUFFIXES, Source

TITLE = 'Pascal VOC'
_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def guess(source: Source) -> str | None:
    """Why the source looks like this format; None if it does not."""
    file = source.first_xml_like(rb'<annotation[\s>]')
    return f'{file.name} is an <annotation> of one image' if file else None


def read(source: Source, options: ReadOptions) -> SourceSet:
    """Read every XML file, and the lists of images in `ImageSets/Main`."""
    splits = _splits(source)
    found = SourceSet([])
    for file in source.with_suffix('.xml'):
        root = source.read(file)
        if root is None:
            continue
        if root.tag != 'annotation':
            source.problems.add('file', file, '', f'its root is <{root.tag}>, not <annotation>')
            continue
        path = _image(source, file, root)
        if path is not None:
            split = splits.get(file.stem) or source.split_of(file)
            image = SourceImage(path, file, _size(root), split)
            image.objects = list(_objects(source, file, root))
            found.images.append(image)
    stems = {path.stem for path in source.images.values()}
    for stem, split in splits.items():
        if stem not in stems:
            source.problems.add('no image', source.root, f'list of {split}', f'{stem} is missing')
    _count_from_zero(found.images)
    return found


def _splits(source: Source) -> dict[str, str]:
    """Stem of each image -> split, from the lists of `ImageSets/Main`."""
    splits: dict[str, str] = {}
    for file in source.files:
        if file.suffix == '.txt' and file.stem in SPLITS and file.parent.name == 'Main':
            for line in file.read_text('utf-8-sig', 'replace').splitlines():
                if line.strip():
                    splits.setdefault(line.split()[0], file.stem)
    return splits


def _image(source: Source, file: Path, root: ET.Element) -> Path | None:
    """The image of an XML file: that of its own name, or else the one that it names."""
    name = (root.findtext('filename') or '').strip()
    for suffix in (Path(name).suffix, *IMAGE_SUFFIXES):
        for folder in file.parent, file.parent.parent / 'JPEGImages':
            path = folder / f'{file.stem}{suffix}'
            if suffix and source.has(path):
                return path
    return source.find_image(name, file, 'filename')


def _size(root: ET.Element) -> tuple[int, int] | None:
    try:
        size = tuple(int(root.findtext(f'size/{key}') or 0) for key in ('width', 'height'))
    except ValueError:
        return None
    return size if min(size) > 0 else None


def _objects(source: Source, file: Path, root: ET.Element):
    for number, item in enumerate(root.findall('object')):
        name, where = (item.findtext('name') or '').strip(), f'object {number}'
        try:
            if not name:
                raise ValueError('it has no name')
            box = geometry.numbers(item.findtext(f'bndbox/{key}') for key in _CORNERS)
        except ValueError as error:
            source.problems.add('invalid', file, f'{where}, bndbox', str(error))
            continue
        yield SourceObject(name, where, box)


def _count_from_zero(images: list[SourceImage]) -> None:
    boxes = [o.box for image in images for o in image.objects]
    if all(min(box) >= 1 for box in boxes):
        for box in boxes:
            box[:] = [value - 1 for value in box]
