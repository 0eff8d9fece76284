"""One-line commands that repair a data file, for the error that refuses it."""

import shlex
from pathlib import Path

_REMOVE_BOM = (
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
    return ' '.join(
        ['python -c', f'"{code}"', *(shlex.quote(str(argument)) for argument in arguments)]
    )


def remove_bom_command(file: str | Path) -> str:
    """The command that removes the byte-order mark of a text file."""
    return _command(_REMOVE_BOM, file)


def replace_backslashes_command(file: str | Path) -> str:
    """The command that writes / for each backslash in the file names of a COCO file."""
    return _command(_EDIT.format(_SLASHES), file)


def unquote_names_command(file: str | Path) -> str:
    """The command that decodes %20 and the like in the file names of a COCO file."""
    return _command(_EDIT.format(_UNQUOTED), file)


def sort_categories_command(file: str | Path, names: tuple[str, ...]) -> str:
    """The command that puts the categories of a COCO file in the order of `names`; ids stay."""
    return _command(_EDIT.format(_ORDER), file, *names)
