"""Links from pages to files of the repository that are no pages.

In the repository a page links to `../SECURITY.md`, `blocks.md#se` or `../tools/train.py`. On the
site the first two are pages that are made, the last is the file at GitHub.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

_LINK = re.compile(r'(?<=\])\((?P<path>(?![a-z]+:|#|/)[^()\s#]+)(?P<anchor>#[^()\s]*)?\)')
_CODE = re.compile(
    r'(^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)`*$|`[^`\n]+`)', re.MULTILINE | re.DOTALL
)
_SHOWN = ('.md', '.ipynb', '.rst', '.png', '.jpg', '.svg')  # files that the site has itself


class DeadLink(ValueError):
    """A link to a file that does not exist."""


def drop_empty_patterns(text: str, docs: Path) -> str:
    """Remove the lines of a table of contents that are patterns and match no page."""
    found = re.findall(r'^[\w/]*\*$', text, re.MULTILINE)
    empty = [line for line in found if not any(docs.glob(line))]
    return '\n'.join(line for line in text.split('\n') if line not in empty)


def rewrite_links(
    text: str, page: Path, docs: Path, repository: str, made: Mapping[str, str]
) -> str:
    """Replace links to files outside of the site.

    Args:
        text: Markdown of a page.
        page: its file, in `docs`, or a document at the root that becomes a page.
        docs: folder of the site, in the repository.
        repository: address of the repository at GitHub.
        made: path in the repository, with an anchor or without -> page in `docs/generated` that the
            site has for it.

    Returns:
        the text; links in code stay as they are.

    Raises:
        DeadLink: a target does not exist.
    """
    root = docs.parent
    home = docs / 'generated' if page.parent == root else page.parent

    def replace(match: re.Match) -> str:
        target = Path(os.path.normpath(page.parent / match['path']))
        anchor = match['anchor'] or ''
        if not target.exists():
            raise DeadLink(f'{page.relative_to(root)}: {match["path"]} does not exist')
        path = target.relative_to(root).as_posix()
        if path + anchor in made:
            target, anchor = docs / 'generated' / made[path + anchor], ''
        elif path in made:
            target = docs / 'generated' / made[path]
        elif docs not in target.parents or target.suffix not in _SHOWN:
            kind = 'tree' if target.is_dir() else 'blob'
            return f'({repository}/{kind}/main/{path}{anchor})'
        return f'({Path(os.path.relpath(target, home)).as_posix()}{anchor})'

    parts = _CODE.split(text)
    step = _CODE.groups + 1  # a piece of text, then the groups of the code that follows it
    shown = [_LINK.sub(replace, part) for part in parts[::step]]
    code = [*parts[1::step], '']
    return ''.join(a + b for a, b in zip(shown, code, strict=True))
