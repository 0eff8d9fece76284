"""LabelMe: a JSON file per image with `shapes`.

Polygons, rectangles, circles and masks are objects; shapes of a label with the same `group_id` are
one object.
"""

import base64
import binascii
from io import BytesIO
from typing import Any

import numpy as np

from . import geometry
from .images import mask_pixels
from .records import ReadOptions, SourceImage, SourceObject, SourceSet
from .source import Source

TITLE = 'LabelMe'


def guess(source: Source) -> str | None:
    """Why the source looks like this format; None if it does not."""
    file = source.first_json_like(_is_labelme)
    return f"{file.name} has 'shapes' and 'imagePath'" if file else None


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and {'shapes', 'imagePath'} <= content.keys()


def read(source: Source, options: ReadOptions) -> SourceSet:
    """Read every JSON file with shapes."""
    found = SourceSet([])
    for file in source.with_suffix('.json'):
        content = source.read(file)
        if not _is_labelme(content):
            if content is not None:
                source.problems.add('file', file, '', "it has no 'shapes' and 'imagePath'")
            continue
        path = source.find_image(content['imagePath'], file, 'imagePath')
        if path is None:
            continue
        size = content.get('imageWidth'), content.get('imageHeight')
        sized = all(type(side) is int and side > 0 for side in size)
        image = SourceImage(path, file, size if sized else None, source.split_of(file))
        shapes = content['shapes'] if isinstance(content['shapes'], list) else []
        groups: dict[Any, SourceObject] = {}
        for number, shape in enumerate(shapes):
            where = f'shapes[{number}]'
            try:
                _add_shape(source, image, shape, where, groups)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                text = f'missing {error}' if isinstance(error, KeyError) else str(error)
                source.problems.add('invalid', file, where, text)
        found.images.append(image)
    return found


def _add_shape(
    source: Source, image: SourceImage, shape: dict, where: str, groups: dict[Any, SourceObject]
) -> None:
    kind, name = shape.get('shape_type', 'polygon'), shape['label']
    if not isinstance(name, str) or not name:
        raise ValueError(f'label is {name!r}')
    found = SourceObject(name, f'{where}, {name}')
    values = geometry.points(shape['points'])
    if kind == 'polygon':
        found.polygons = [values]
    elif kind == 'rectangle' and len(values) in (4, 8):
        found.box = geometry.bounds([values])
    elif kind == 'circle' and len(values) == 4:
        radius = float(np.hypot(values[2] - values[0], values[3] - values[1]))
        found.polygons = [geometry.ellipse(*values[:2], radius, radius)]
    elif kind == 'mask' and len(values) == 4:
        if image.size is None:
            raise ValueError('imageWidth and imageHeight are missing, which a mask needs')
        try:
            data = base64.b64decode(shape['mask'], validate=True)
        except binascii.Error as error:
            raise ValueError(f'mask: {error}') from error
        pixels = mask_pixels(BytesIO(data), image.file)
        found.mask = geometry.place(pixels, round(values[0]), round(values[1]), image.size)
    else:
        source.problems.add('shape', image.file, f'{where}, {name}', f'it is a {kind}')
        return
    group = shape.get('group_id')
    first = groups.setdefault((name, group), found) if group is not None else found
    if first is found or not (first.polygons and found.polygons):
        image.objects.append(found)
    else:
        first.polygons += found.polygons
