"""COCO instance files, one or several; as Roboflow exports them, too.

Boxes are [x, y, width, height] in pixels; masks are polygons or run-length encodings.
"""

from pathlib import Path
from typing import Any

from ..coco_entries import check_not_panoptic
from . import geometry
from .records import ReadOptions, SourceImage, SourceObject, SourceSet
from .source import Source, split_in

TITLE = 'COCO JSON'


def guess(source: Source) -> str | None:
    """Why the source looks like this format; None if it does not."""
    file = source.first_json_like(_is_coco)
    return f"{file.name} has 'images', 'annotations' and 'categories'" if file else None


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and {'images', 'annotations', 'categories'} <= content.keys()


def read(source: Source, options: ReadOptions) -> SourceSet:
    """Read all COCO files of the source; classes are joined by name."""
    found = SourceSet([])
    images: dict[Path, SourceImage] = {}
    supercategories: set[str] = set()
    files = source.with_suffix('.json')
    for file in files:
        content = source.read(file)
        if not _is_coco(content):
            if source.given and content is not None:
                source.problems.add('file', file, '', 'it is no file of COCO instances')
            continue
        check_not_panoptic(content)
        split = (source.split_of(file) or split_in(file.stem)) if len(files) > 1 else None
        _read_file(source, file, split, content, found, images, supercategories)
    found.images = list(images.values())
    used = {o.name for image in found.images for o in image.objects}
    # Roboflow adds a category of which all others are kinds
    roots = [c for c in found.classes if c in supercategories - used]
    found.classes = [c for c in found.classes if c not in roots]
    return found


def _read_file(
    source: Source,
    file: Path,
    split: str | None,
    content: dict,
    found: SourceSet,
    images: dict[Path, SourceImage],
    supercategories: set[str],
) -> None:
    problems = source.problems
    names: dict[Any, str] = {}
    for number, entry in enumerate(_entries(source, file, content, 'categories')):
        name = entry.get('name')
        where = f'categories[{number}] (id {entry.get("id")!r})'
        if not isinstance(name, str) or not name.strip() or not _is_id(entry.get('id')):
            problems.add('class', file, f'{where}, name', f'{name!r} is no class name')
        elif names.setdefault(entry['id'], name) != name:
            problems.add('id', file, f'{where}, id', f'is {names[entry["id"]]!r}, too')
        else:
            supercategories.add(str(entry.get('supercategory')))
            if name not in found.classes:
                found.classes.append(name)
    by_id: dict[Any, SourceImage | None] = {}
    for number, entry in enumerate(_entries(source, file, content, 'images')):
        ident, where = entry.get('id'), f'images[{number}] (id {entry.get("id")!r})'
        if not _is_id(ident):
            problems.add('invalid', file, f'{where}, id', f'{ident!r} is no id')
            continue
        if ident in by_id:
            problems.add('id', file, f'{where}, id', 'another image has it, too')
            continue
        path = source.find_image(entry.get('file_name'), file, where)
        size = entry.get('width'), entry.get('height')
        sized = all(type(side) is int and side > 0 for side in size)
        if path in images:
            problems.add('annotators', file, f'{where}, file_name', f'{path.name} is there twice')
        by_id[ident] = image = path and images.setdefault(
            path, SourceImage(path, file, size if sized else None, split)
        )
        if not sized and image:
            problems.add('invalid', file, f'{where}, width and height', f'are {size}')
    seen: set[Any] = set()
    for number, entry in enumerate(_entries(source, file, content, 'annotations')):
        where = f'annotations[{number}] (id {entry.get("id")!r})'
        ident = entry.get('id')
        if _is_id(ident) and ident in seen:
            problems.add('duplicate', file, f'{where}, id', 'another annotation has it, too')
        seen.add(ident if _is_id(ident) else None)
        image_id, category = entry.get('image_id'), entry.get('category_id')
        if not _is_id(image_id) or image_id not in by_id:
            problems.add('orphan', file, f'{where}, image_id', f'{image_id!r} is not listed')
        elif not _is_id(category) or category not in names:
            problems.add('class', file, f'{where}, category_id', f'{category!r} is not defined')
        elif by_id[image_id] is not None:
            try:
                by_id[image_id].objects.append(_object(entry, names[category], where))
            except ValueError as error:
                problems.add('invalid', file, where, str(error))


def _entries(source: Source, file: Path, content: dict, key: str) -> list[dict]:
    entries = content[key]
    if not isinstance(entries, list):
        source.problems.add('file', file, key, f'is a {type(entries).__name__}, not a list')
        return []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            source.problems.add('invalid', file, f'{key}[{number}]', f'{entry!r} is no object')
    return [entry for entry in entries if isinstance(entry, dict)]


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _object(entry: dict, name: str, where: str) -> SourceObject:
    box, shape = entry.get('bbox'), entry.get('segmentation')
    found = SourceObject(name, where, is_crowd=entry.get('iscrowd') == 1)
    if box is not None:
        if not isinstance(box, list) or len(box) != 4:
            raise ValueError(f'bbox: {str(box)[:60]} is not [x, y, width, height]')
        x, y, width, height = geometry.numbers(box)
        found.box = [x, y, x + width, y + height]
    if isinstance(shape, dict):
        found.mask = shape
    elif isinstance(shape, list):
        for polygon in shape:
            if not isinstance(polygon, list):
                raise ValueError(f'segmentation: {str(shape)[:60]} are no polygons')
            found.polygons.append(geometry.numbers(polygon))
    elif shape is not None:
        raise ValueError(f'segmentation: {str(shape)[:60]} are no polygons, and no RLE')
    if found.box is None and not found.has_mask:
        raise ValueError('neither bbox nor segmentation')
    return found
