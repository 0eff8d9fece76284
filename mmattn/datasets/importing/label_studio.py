"""Label Studio's JSON export: a list of tasks with the results of annotators.

Coordinates are per cent of the image. Rectangles, ellipses, polygons and brush strokes are objects.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..image_limits import check_megapixels
from . import geometry
from .records import ReadOptions, SourceImage, SourceObject, SourceSet
from .source import Source

TITLE = 'Label Studio JSON'
_KINDS = ('rectanglelabels', 'polygonlabels', 'brushlabels', 'ellipselabels')
_CHANNELS = 4  # of the image of a brush stroke; the last one, alpha, is the mask


def guess(source: Source) -> str | None:
    """Why the source looks like this format; None if it does not."""
    file = source.first_json_like(_is_export)
    return f"{file.name} is a list of tasks with 'data' and 'annotations'" if file else None


def _is_export(content: Any) -> bool:
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and {'data', 'annotations'} <= first.keys()


def read(source: Source, options: ReadOptions) -> SourceSet:
    """Read every task; of several annotations of an image the first counts."""
    found = SourceSet([])
    for file in source.with_suffix('.json'):
        content = source.read(file)
        if not _is_export(content):
            if content is not None:
                source.problems.add('file', file, '', "it is no list of tasks with 'annotations'")
            continue
        for number, task in enumerate(content):
            where = f'task {task.get("id", number) if isinstance(task, dict) else number}'
            try:
                found.images += _image(source, file, task, where)
            except (KeyError, TypeError, AttributeError) as error:
                source.problems.add('invalid', file, where, f'it is no task: {error}')
    return found


def _image(source: Source, file: Path, task: dict, where: str) -> list[SourceImage]:
    texts = (value for value in task['data'].values() if isinstance(value, str))
    address = task.get('file_upload') or next(texts, '')
    name = str(address).split('?d=')[-1].split('?')[0]
    plain = name.rsplit('/', 1)[-1].partition('-')
    prefixed = len(plain[0]) == 8 and plain[2]  # uploads get eight digits in front
    if prefixed and source.has_image_named(plain[2]):
        name = plain[2]
    path = source.find_image(name, file, where)
    if path is None:
        return []
    valid = [a for a in task['annotations'] if not a.get('was_cancelled')]
    if not valid:
        source.problems.add('not listed', file, where, f'nobody has annotated {name}')
        return []
    if len(valid) > 1:
        source.problems.add('annotators', file, where, f'{name} has {len(valid)} annotations')
    image = SourceImage(path, file, split=source.split_of(path), is_relative=True)
    for number, result in enumerate(valid[0]['result']):
        kind = result.get('type')
        place = f'{where}, result {result.get("id", number)}'
        if kind not in _KINDS:
            if kind not in ('choices', 'textarea', 'rating'):
                source.problems.add('shape', file, place, f'it is of {kind}')
            continue
        try:
            size = int(result['original_width']), int(result['original_height'])
            if min(size) < 1:
                raise ValueError(f'the size of its image is {size}')
            image.size = image.size or size
            image.objects.append(_object(result['value'], kind, place, size))
        except (KeyError, IndexError) as error:
            source.problems.add('invalid', file, place, f'missing {error}')
        except (ValueError, TypeError, OverflowError) as error:
            source.problems.add('invalid', file, place, str(error))
    return [image]


def _object(value: dict, kind: str, where: str, size: tuple[int, int]) -> SourceObject:
    found = SourceObject(value[kind][0], where)
    if not isinstance(found.name, str):
        raise ValueError(f'{kind} is {value[kind]!r}')
    if kind == 'polygonlabels':
        found.polygons = [[v / 100 for v in geometry.points(value['points'])]]
    elif kind == 'brushlabels':
        found.mask = geometry.encode(_brush(value['rle'], size))
    else:
        keys = ['x', 'y', 'width', 'height'] if kind == 'rectanglelabels' else (
            ['x', 'y', 'radiusX', 'radiusY']
        )  # fmt: skip
        x, y, width, height = geometry.numbers(value[key] for key in keys)
        (angle,) = geometry.numbers([value.get('rotation') or 0])
        columns, rows = size[0] / 100, size[1] / 100  # rotation is of pixels
        x, y, width, height = x * columns, y * rows, width * columns, height * rows
        if kind == 'ellipselabels':
            outline = geometry.ellipse(x, y, width, height, angle)
            found.polygons = [[v / size[i % 2] for i, v in enumerate(outline)]]
        else:
            box = [x, y, x + width, y + height]
            if angle:
                box = geometry.turned_box(x, y, width, height, angle, (x, y))
            found.box = [v / size[i % 2] for i, v in enumerate(box)]
    return found


def _brush(code: Any, size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) of Label Studio's run-length code, a list of bytes.

    Its bits are: 32 of the number of values, 5 of the word size less one, four times 4 of the
    sizes of run lengths less one; then runs: one bit that is 1 where a single value repeats, two
    bits that choose the size of the length, the length less one, and one value or as many.

    Raises:
        ValueError: it is no such code, or not of this size.
    """
    width, height = size
    check_megapixels('brush stroke of an image that', width * height)
    if not isinstance(code, list) or not all(type(v) is int and 0 <= v < 256 for v in code):
        raise ValueError('rle is no list of bytes')
    bits = ''.join(f'{byte:08b}' for byte in code)
    position = 0

    def take(count: int) -> int:
        nonlocal position
        if position + count > len(bits):
            raise ValueError('rle is cut short')
        position += count
        return int(bits[position - count : position], 2)

    total = take(32)
    if total != width * height * _CHANNELS:
        raise ValueError(f'rle has {total} values, the image {width}x{height} pixels')
    word = take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    values, index = np.zeros(total, np.int64), 0
    while index < total:
        repeats = take(1)
        count = take(lengths[take(2)]) + 1
        end = index + count
        if end > total:
            raise ValueError('rle has more values than it says')
        if repeats:
            values[index:end] = take(word)
        else:
            values[index:end] = [take(word) for _ in range(count)]
        index = end
    return values.reshape(height, width, _CHANNELS)[..., -1] > 0
