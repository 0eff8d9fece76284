"""VGG Image Annotator, version 2 or 1: its project or its export as JSON."""

from collections import Counter
from typing import Any

from . import geometry
from .records import ReadOptions, SourceImage, SourceObject, SourceSet
from .source import Source

TITLE = 'VGG Image Annotator'
_CLASS_KEYS = ('label', 'class', 'name', 'type', 'category')  # of the attributes of a region


def guess(source: Source) -> str | None:
    """Why the source looks like this format; None if it does not."""
    file = source.first_json_like(_entries)
    return f"{file.name} has 'filename' and 'regions'" if file else None


def _entries(content: Any) -> dict[str, dict]:
    """The entry of each image, in a project or in an export."""
    if isinstance(content, dict):
        content = content.get('_via_img_metadata', content)
    if not isinstance(content, dict) or not content:
        return {}
    entries = {
        key: entry
        for key, entry in content.items()
        if isinstance(entry, dict) and {'filename', 'regions'} <= entry.keys()
    }
    return entries if len(entries) == len(content) else {}


def read(source: Source, options: ReadOptions) -> SourceSet:
    """Read all JSON files; the class is the attribute of the regions that is named so."""
    found = SourceSet([])
    for file in source.with_suffix('.json'):
        content = source.read(file)
        entries = _entries(content)
        if not entries:
            if content is not None:
                source.problems.add('file', file, '', "its entries have no 'filename', 'regions'")
            continue
        key = _class_key(entries)
        if key is None:
            text = f'none of {", ".join(_CLASS_KEYS)} is there, and several others'
            source.problems.add('class', file, 'region_attributes', text)
            continue
        for name, entry in entries.items():
            path = source.find_image(entry['filename'], file, name)
            if path is None:
                continue
            image = SourceImage(path, file, split=source.split_of(path))
            for number, region in enumerate(_regions(entry)):
                _add_region(source, image, region, key, f'{entry["filename"]}, region {number}')
            found.images.append(image)
    return found


def _regions(entry: dict) -> list:
    regions = entry['regions']
    regions = list(regions.values()) if isinstance(regions, dict) else regions
    return regions if isinstance(regions, list) else []


def _class_key(entries: dict[str, dict]) -> str | None:
    counts: Counter = Counter()
    for entry in entries.values():
        for region in _regions(entry):
            attributes = region.get('region_attributes') if isinstance(region, dict) else None
            counts.update(list(attributes) if isinstance(attributes, dict) else ())
    named = [key for key in _CLASS_KEYS if counts[key]]
    if named or len(counts) <= 1:
        return named[0] if named else next(iter(counts), _CLASS_KEYS[0])
    return None


def _add_region(source: Source, image: SourceImage, region: Any, key: str, where: str) -> None:
    file = image.file
    try:
        name = region['region_attributes'].get(key)
        if isinstance(name, dict):  # ticked boxes
            name = next((k for k, ticked in name.items() if ticked), None)
        if not isinstance(name, str) or not name.strip():
            source.problems.add('invalid', file, f'{where}, {key}', f'{name!r} is no class')
            return
        found = SourceObject(name.strip(), where)
        shape = region['shape_attributes']
        kind = shape['name']
        if kind == 'rect':
            x, y, width, height = _values(shape, 'x', 'y', 'width', 'height')
            found.box = [x, y, x + width, y + height]
        elif kind == 'polygon':
            xs, ys = shape['all_points_x'], shape['all_points_y']
            if len(xs) != len(ys):
                raise ValueError(f'{len(xs)} values of x, {len(ys)} of y')
            found.polygons = [geometry.points([list(pair) for pair in zip(xs, ys)])]
        elif kind == 'circle':
            x, y, radius = _values(shape, 'cx', 'cy', 'r')
            found.polygons = [geometry.ellipse(x, y, radius, radius)]
        elif kind == 'ellipse':
            found.polygons = [geometry.ellipse(*_values(shape, 'cx', 'cy', 'rx', 'ry'))]
        else:
            source.problems.add('shape', file, where, f'it is a {kind}')
            return
    except KeyError as error:
        source.problems.add('invalid', file, where, f'missing {error}')
    except (ValueError, TypeError, AttributeError) as error:
        source.problems.add('invalid', file, where, str(error))
    else:
        image.objects.append(found)


def _values(shape: dict, *keys: str) -> list[float]:
    return geometry.numbers(shape[key] for key in keys)
