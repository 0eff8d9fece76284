"""Ultralytics' YOLO: `data.yaml`, and a text file per image with boxes or polygons.

Lines are `class x y width height`, of the centre, or `class x1 y1 x2 y2 ...`, in fractions of the
image; `labels/a.txt` belongs to `images/a.jpg`.
"""

import os
from pathlib import Path
from typing import Any

import yaml

from . import geometry
from .records import ReadOptions, SourceImage, SourceObject, SourceSet
from .source import Source

TITLE = 'YOLO (Ultralytics)'
_KEYS = dict(train='train', val='val', test='test', valid='val')  # of the file -> split


def guess(source: Source) -> str | None:
    """Why the source looks like this format; None if it does not."""
    file, _ = _config(source)
    return f'{file.name} has class names and folders of images' if file else None


def _config(source: Source) -> tuple[Path | None, dict]:
    for file in source.with_suffix('.yaml', '.yml'):
        try:
            content = yaml.safe_load(file.read_text('utf-8-sig'))
        except (yaml.YAMLError, UnicodeDecodeError):
            continue
        if isinstance(content, dict) and 'names' in content and set(_KEYS) & content.keys():
            return file, content
    return None, {}


def read(source: Source, options: ReadOptions) -> SourceSet:
    """Read the images of every split that `data.yaml` names."""
    file, content = _config(source)
    if file is None:
        source.problems.add('file', source.root, '', 'no data.yaml with names and train is there')
        return SourceSet([])
    classes = _names(source, file, content)
    found = SourceSet([], classes)
    seen: set[Path] = set()
    for key, split in _KEYS.items():
        for path in _images(source, file, content, key):
            if path not in seen:
                seen.add(path)
                found.images.append(_read_image(source, path, split, classes))
    labels = {image.file for image in found.images}
    for path in source.files:
        is_label = path.suffix == '.txt' and path.parent.name == 'labels'
        if is_label and path not in labels and path.stem != 'classes':
            source.problems.add('no image', path, '', 'its image is missing')
    return found


def _names(source: Source, file: Path, content: dict) -> list[str]:
    names = content['names']
    if isinstance(names, dict):
        names = [names.get(i, names.get(str(i))) for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(n, str | int) for n in names):
        source.problems.add('class', file, 'names', f'{str(content["names"])[:60]} are no names')
        return []
    count = content.get('nc')
    if isinstance(count, int) and count != len(names):
        source.problems.add('class', file, 'nc', f'is {count}, but there are {len(names)} names')
    if content.get('kpt_shape'):
        source.problems.add('shape', file, 'kpt_shape', 'keypoints are not imported')
    return [str(name) for name in names]


def _images(source: Source, file: Path, content: dict, key: str) -> list[Path]:
    """The images of a split, as folders or lists of them name it."""
    places = content.get(key) or []
    found = []
    for place in places if isinstance(places, list) else [places]:
        folder = _place(source, file, content.get('path'), place)
        if folder is None:
            source.problems.add('no image', file, key, f'{place} is not below {source.root}')
        elif folder.is_file():
            for number, line in enumerate(folder.read_text('utf-8-sig', 'replace').splitlines(), 1):
                name = line.strip()
                path = source.find_image(name, folder, f'line {number}') if name else None
                found += [path] if path else []
        else:
            found += [p for p in source.images.values() if p.is_relative_to(folder)]
    return found


def _place(source: Source, file: Path, root: Any, place: Any) -> Path | None:
    """The folder or list that a path in `data.yaml` means, below the root of the source.

    Paths are relative to `path`, which is that of another machine mostly; Roboflow's begin with
    `../`, which Ultralytics cuts off, too.
    """
    text = str(place).replace('\\', '/')
    bases = [file.parent, source.root]
    if isinstance(root, str):
        bases.insert(0, file.parent / root)
    parts = [part for part in text.split('/') if part not in ('', '.', '..')]
    ends = [Path(*parts[-count:]) for count in range(len(parts), 0, -1)]
    home = os.path.abspath(source.root)
    for candidate in [base / text for base in bases] + [b / end for end in ends for b in bases]:
        path = Path(os.path.abspath(candidate))  # links may lead out of the source, names not
        if path.exists() and path.is_relative_to(home):
            return source.root / path.relative_to(home)
    return None


def _read_image(source: Source, path: Path, split: str, classes: list[str]) -> SourceImage:
    parts = list(path.parts)
    if 'images' in parts:
        parts[len(parts) - 1 - parts[::-1].index('images')] = 'labels'
    file = Path(*parts).with_suffix('.txt')
    image = SourceImage(path, file, split=split, is_relative=True)
    try:
        lines = file.read_text('utf-8-sig').splitlines()
    except FileNotFoundError:
        return image  # of background, as Ultralytics takes it
    except UnicodeDecodeError as error:
        source.problems.add('file', file, '', f'it is no text: {error.reason}')
        return image
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        where = f'line {number}'
        index = words[0].removesuffix('.0')
        if not index.isdecimal() or int(index) >= len(classes):
            text = f'{words[0]} is no class, allowed 0..{len(classes) - 1}'
            source.problems.add('class', file, f'{where}, class', text)
            continue
        try:
            image.objects.append(_object(classes[int(index)], where, words[1:]))
        except ValueError as error:
            source.problems.add('invalid', file, where, str(error))
    return image


def _object(name: str, where: str, words: list[str]) -> SourceObject:
    values = geometry.numbers(words)
    if len(values) == 4:
        x, y, width, height = values
        box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        return SourceObject(name, where, box)
    if len(values) % 2:
        raise ValueError(f'{len(values)} numbers, expected 4 of a box or pairs of a polygon')
    return SourceObject(name, where, polygons=[values])
