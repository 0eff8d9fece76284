"""CVAT for images 1.1: one XML file with an `<image>` for each image."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from . import geometry
from .records import ReadOptions, SourceImage, SourceObject, SourceSet
from .source import Source, split_in

TITLE = 'CVAT for images 1.1'
_OTHERS = ('points', 'polyline', 'cuboid', 'skeleton', 'tag')  # shapes that are no objects


def guess(source: Source) -> str | None:
    """Why the source looks like this format; None if it does not."""
    file = source.first_xml_like(b'<annotations>.*<version>')
    return f'{file.name} has <annotations> with a <version>' if file else None


def read(source: Source, options: ReadOptions) -> SourceSet:
    """Read all XML files; classes and colours are those of the labels of the task."""
    found = SourceSet([])
    for file in source.with_suffix('.xml'):
        root = source.read(file)
        if root is None:
            continue
        if root.tag != 'annotations':
            source.problems.add('file', file, '', f'its root is <{root.tag}>, not <annotations>')
            continue
        for label in root.iter('label'):
            name = label.findtext('name')
            if name and name not in found.classes:
                found.classes.append(name)
                if rgb := re.fullmatch('#([0-9a-fA-F]{6})', label.findtext('color') or ''):
                    found.colours[name] = tuple(bytes.fromhex(rgb[1]))
        if root.find('track') is not None:
            source.problems.add('file', file, 'track', 'it is for video; export as images')
        for element in root.findall('image'):
            found.images += _image(source, file, element)
    return found


def _image(source: Source, file: Path, element: ET.Element) -> list[SourceImage]:
    where = f'image {element.get("id")}'
    path = source.find_image(element.get('name'), file, where)
    if path is None:
        return []
    try:
        size = int(element.get('width') or 0), int(element.get('height') or 0)
    except ValueError:
        size = 0, 0
    split = split_in(element.get('subset') or '') or source.split_of(path)
    image = SourceImage(path, file, size if min(size) > 0 else None, split)
    for number, item in enumerate(element):
        name = item.get('label') or ''
        place = f'{where}, {item.tag} {number} ({name})'
        if item.tag in _OTHERS:
            source.problems.add('shape', file, place, f'it is a {item.tag}')
            continue
        try:
            image.objects.append(_object(item, name, place, image.size))
        except ValueError as error:
            source.problems.add('invalid', file, place, str(error))
    return [image]


def _object(item: ET.Element, name: str, where: str, size: tuple[int, int] | None) -> SourceObject:
    if not name:
        raise ValueError('it has no label')
    found = SourceObject(name, where)
    (angle,) = geometry.numbers([item.get('rotation') or 0])
    if item.tag == 'box':
        x1, y1, x2, y2 = geometry.numbers(item.get(k) for k in ('xtl', 'ytl', 'xbr', 'ybr'))
        found.box = [x1, y1, x2, y2]
        if angle:
            centre = (x1 + x2) / 2, (y1 + y2) / 2
            found.box = geometry.turned_box(x1, y1, x2 - x1, y2 - y1, angle, centre)
    elif item.tag == 'polygon':
        pairs = [pair.split(',') for pair in (item.get('points') or '').split(';') if pair]
        found.polygons = [geometry.points(pairs)]
    elif item.tag == 'ellipse':
        values = geometry.numbers(item.get(k) for k in ('cx', 'cy', 'rx', 'ry'))
        found.polygons = [geometry.ellipse(*values, angle)]
    elif item.tag == 'mask':
        if size is None:
            raise ValueError('width and height of its image are missing, which a mask needs')
        found.mask = _mask(item, size)
    else:
        raise ValueError(f'<{item.tag}> is no shape')
    return found


def _mask(item: ET.Element, size: tuple[int, int]) -> dict:
    """A mask of run lengths, of 0 and 1 in turn, row by row in the box of the object."""
    keys = 'left', 'top', 'width', 'height'
    left, top, width, height = map(int, geometry.numbers(item.get(key) for key in keys))
    if not (1 <= width <= 2 * size[0] and 1 <= height <= 2 * size[1]):
        raise ValueError(f'its box is {width}x{height}, the image {size[0]}x{size[1]}')
    runs = [int(run) for run in (item.get('rle') or '').split(',')]
    if min(runs) < 0 or sum(runs) != width * height:
        raise ValueError(f'rle covers {sum(runs)} px, its box has {width * height}')
    pixels = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    return geometry.place(pixels, left, top, size)
