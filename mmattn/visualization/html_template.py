"""Filling in the templates of HTML pages, which share their head and a part of their style."""

import re
from html import escape
from pathlib import Path

from mmattn.errors import cannot_write
from mmattn.files import write_text_atomic

_MARK = re.compile('__([A-Z]+)__')
_FOLDER = Path(__file__).parent


def fill_template(path: str | Path, template: str, title: str, **content: str) -> None:
    """Write a page from a template of this folder.

    Args:
        path: path of the HTML file.
        template: file name of the template, which begins with the mark `__HEAD__`.
        title: title of the page, also for `__TITLE__`; escaped here.
        content: HTML for the other marks of the template; marks in it are not filled in.

    Raises:
        WriteError: the file cannot be written.
    """
    content['TITLE'] = escape(title)
    content['HEAD'] = _filled('page_head.html', content)
    try:
        write_text_atomic(Path(path), _filled(template, content))
    except OSError as error:
        raise cannot_write(path, error) from error


def _filled(template: str, content: dict[str, str]) -> str:
    text = (_FOLDER / template).read_text(encoding='utf-8')
    return _MARK.sub(lambda mark: content[mark[1]], text)
