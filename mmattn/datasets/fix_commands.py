"""Commands of one line that mend a file of data, to be printed where one is refused for it."""

import shlex
from pathlib import Path

_WITHOUT_MARK = (
    "import sys; f = sys.argv[1]; t = open(f, encoding='utf-8-sig').read(); "
    "open(f, 'w', encoding='utf-8').write(t)"
)
_EDIT = (
    "import json, sys; f, *n = sys.argv[1:]; d = json.load(open(f, 'rb')); {}; "
    "json.dump(d, open(f, 'w'))"
)
_SLASHES = "[i.update(file_name=i['file_name'].replace(chr(92), '/')) for i in d['images']]"
_UNQUOTED = (
    'from urllib.parse import unquote; '
    "[i.update(file_name=unquote(i['file_name'])) for i in d['images']]"
)
_ORDER = "d['categories'].sort(key=lambda c: n.index(c['name']) if c['name'] in n else len(n))"


def _command(code: str, *arguments: str | Path) -> str:
    return ' '.join(['python -c', f'"{code}"', *(shlex.quote(str(a)) for a in arguments)])


def without_mark(file: str | Path) -> str:
    """Takes the byte-order mark off a file."""
    return _command(_WITHOUT_MARK, file)


def with_slashes(file: str | Path) -> str:
    """Writes / for each backslash in the file names of a COCO file."""
    return _command(_EDIT.format(_SLASHES), file)


def unquoted(file: str | Path) -> str:
    """Writes %20 and the like in the file names of a COCO file as the letters that they are."""
    return _command(_EDIT.format(_UNQUOTED), file)


def in_order(file: str | Path, names: tuple[str, ...]) -> str:
    """Puts the categories of a COCO file in the order of these names; ids stay."""
    return _command(_EDIT.format(_ORDER), file, *names)
