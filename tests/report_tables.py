"""What is on the page of a report: its tables by caption, its pictures and their captions."""

from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """A page that is read.

    Attributes:
        tables: caption -> rows of cells, the header first; of equal captions, a list of each.
        pictures: file -> text of its caption.
        targets: everything that the page loads or links to.
        text: all of its text.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.pictures: dict[str, str] = {}
        self.targets: list[str] = []
        self.text = ''
        self._open, self._cell, self._rows, self._caption, self._file = [], '', [], '', ''
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs) -> None:
        attrs = dict(attrs)
        self.targets += [attrs[key] for key in ('src', 'href') if key in attrs]
        self._cell = '' if tag in ('th', 'td', 'caption', 'figcaption') else self._cell
        if tag == 'table':
            self._rows = []
        elif tag == 'tr':
            self._rows.append([])
        elif tag == 'img':
            self._file = attrs['src']

    def handle_data(self, data) -> None:
        self._cell += data
        self.text += data

    def handle_endtag(self, tag) -> None:
        if tag in ('th', 'td'):
            self._rows[-1].append(self._cell)
        elif tag == 'caption':
            self._caption = self._cell
        elif tag == 'figcaption':
            self.pictures[self._file] = self._cell
        elif tag == 'table':
            self.tables.setdefault(self._caption, []).append(self._rows)

    def table(self, caption: str, which: int = 0) -> dict[str, dict[str, str]]:
        """Row -> column -> text of a table."""
        header, *rows = self.tables[caption][which]
        return {first: dict(zip(header[1:], cells, strict=True)) for first, *cells in rows}
