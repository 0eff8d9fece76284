"""Tables of classes and their colours, as `--classes` takes them and data sets come with them."""

import json
import re
from pathlib import Path

from mmattn.errors import DataError

from .source import Source

_NAMES = ('labelmap.txt', 'class_dict.csv', 'label_colors.txt', 'classes.txt', 'labels.txt')

Colours = dict[str, tuple[int, int, int]]


def read_table(path: Path) -> tuple[list[str], Colours]:
    """Class names of a file in their order, and their colours where the file has them.

    A line is a name, or has three numbers as well: `128 0 64 car`, `car,128,0,64` or CVAT's
    `car:128,0,64::`. A JSON file is a list of names, or names with lists of three numbers.

    Raises:
        DataError: it cannot be read, or is no such table; names the line.
    """
    try:
        text = path.read_text('utf-8-sig')
        content = json.loads(text) if path.suffix.lower() == '.json' else None
    except (OSError, ValueError) as error:
        raise DataError(f'table of classes {path} cannot be read: {error}.') from error
    if isinstance(content, dict):
        lines = [f'{name}:{",".join(map(str, colour))}' for name, colour in content.items()]
    else:
        lines = text.splitlines() if content is None else [str(name) for name in content]
    names, colours = [], {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith('#'):
            continue
        name, rgb = _parse(line)
        if number == 1 and name.lower().replace(' ', '') in ('name', 'name,r,g,b'):
            continue  # the header of a table
        if not name or (rgb and max(rgb) > 255):
            raise DataError(f'table of classes {path}, line {number}: {line!r} names no class.')
        if name in names:
            raise DataError(f'table of classes {path}, line {number}: {name!r} is there twice.')
        names.append(name)
        if rgb:
            colours[name] = rgb
    if not names:
        raise DataError(f'table of classes {path} is empty.')
    if colours and len(colours) < len(names):
        missing = next(name for name in names if name not in colours)
        raise DataError(f'table of classes {path}: {missing!r} has no colour, others have one.')
    return names, colours


def _parse(line: str) -> tuple[str, tuple[int, int, int] | None]:
    line = line.strip().rstrip(':').strip()
    first = re.fullmatch(r'(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,:]+(.+)', line)
    if first:
        return first[4].strip(), (int(first[1]), int(first[2]), int(first[3]))
    last = re.fullmatch(r'(.+?)\s*[,:;\t ]\s*(\d+)[\s,]+(\d+)[\s,]+(\d+)', line)
    if last:
        return last[1].strip(), (int(last[2]), int(last[3]), int(last[4]))
    return line, None


def find_table(source: Source) -> tuple[list[str], Colours]:
    """Class names and colours of a table that the data set comes with; empty if there is none."""
    tables = [read_table(path) for path in source.files if path.name in _NAMES]
    with_colours = [table for table in tables if table[1]]
    return next(iter(with_colours + tables), ([], {}))
