"""Supervisely: `meta.json`, and in each data set `ann/IMAGE.json` for `img/IMAGE`."""

import base64
import binascii
import re
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

from . import geometry
from .images import mask_pixels
from .records import ReadOptions, SourceImage, SourceObject, SourceSet
from .source import Source

TITLE = 'Supervisely'
_MAX_BYTES = 1 << 26  # of an unpacked mask


def guess(source: Source) -> str | None:
    """Why the source looks like this format; None if it does not."""
    meta = next((p for p in source.with_suffix('.json') if p.name == 'meta.json'), None)
    has_annotations = any(p.parent.name == 'ann' for p in source.with_suffix('.json'))
    return f'{meta.name} and folders ann are there' if meta and has_annotations else None


def read(source: Source, options: ReadOptions) -> SourceSet:
    """Read the classes of `meta.json`, and every file in the folders `ann`."""
    found = SourceSet([])
    for file in source.with_suffix('.json'):
        if file.name == 'meta.json':
            _read_classes(source, file, found)
        elif file.parent.name == 'ann':
            found.images += _image(source, file)
    return found


def _read_classes(source: Source, file: Path, found: SourceSet) -> None:
    content = source.read(file)
    classes = content.get('classes') if isinstance(content, dict) else None
    for item in classes if isinstance(classes, list) else ():
        name = item.get('title') if isinstance(item, dict) else None
        if isinstance(name, str) and name and name not in found.classes:
            found.classes.append(name)
            if rgb := re.fullmatch('#([0-9a-fA-F]{6})', str(item.get('color'))):
                found.colours[name] = tuple(bytes.fromhex(rgb[1]))


def _image(source: Source, file: Path) -> list[SourceImage]:
    content = source.read(file)
    if content is None:
        return []
    try:
        size = int(content['size']['width']), int(content['size']['height'])
        objects = list(content['objects'])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        source.problems.add('file', file, '', f'it has no size and objects: {error}')
        return []
    own = file.parent.parent / 'img' / file.stem  # a.jpg.json is of a.jpg
    path = own if source.has(own) else source.find_image(file.stem, file)
    if path is None:
        return []
    image = SourceImage(path, file, size, source.split_of(file))
    for number, item in enumerate(objects):
        where = f'objects[{number}]'
        try:
            where = f'objects[{number}] (id {item.get("id")!r})'
            found = _object(source, file, item, where, size)
        except KeyError as error:
            source.problems.add('invalid', file, where, f'missing {error}')
        except (ValueError, TypeError, AttributeError, zlib.error) as error:
            source.problems.add('invalid', file, where, str(error))
        else:
            image.objects += [found] if found else []
    return [image]


def _object(
    source: Source, file: Path, item: dict[str, Any], where: str, size: tuple[int, int]
) -> SourceObject | None:
    kind, name = item['geometryType'], item['classTitle']
    if not isinstance(name, str) or not name:
        raise ValueError(f'classTitle is {name!r}')
    found = SourceObject(name, where)
    if kind == 'rectangle':
        found.box = geometry.bounds([geometry.points(item['points']['exterior'])])
    elif kind == 'polygon':
        found.polygons = [geometry.points(item['points']['exterior'])]
        holes = [geometry.points(hole) for hole in item['points'].get('interior') or ()]
        holes = [hole for hole in holes if len(hole) >= 6]
        if holes and len(found.polygons[0]) >= 6:
            mask = geometry.decode(found.polygons, None, size)
            mask &= ~geometry.decode(holes, None, size)
            found.polygons, found.mask = [], geometry.encode(mask)
    elif kind == 'bitmap':
        try:
            packed = base64.b64decode(item['bitmap']['data'], validate=True)
        except binascii.Error as error:
            raise ValueError(f'bitmap: {error}') from error
        data = zlib.decompressobj().decompress(packed, _MAX_BYTES)
        left, top = geometry.numbers(item['bitmap']['origin'])
        found.mask = geometry.place(mask_pixels(BytesIO(data), file), int(left), int(top), size)
    else:
        source.problems.add('shape', file, where, f'it is a {kind}')
        return None
    return found
