"""A page of tables and pictures, as HTML without scripts, which needs no server and no network."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from pathlib import Path
from urllib.parse import quote

from mmattn.errors import printable

from .html_template import fill_template


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    def html(self, name: str) -> str:
        return f'<p>{_shown(self.text)}</p>'


@dataclass(frozen=True)
class Table:
    """A table, whose rows begin with their name.

    Attributes:
        caption: its name.
        header: names of the columns.
        rows: texts of the cells.
        folded: whether it is shown on demand, as large ones are.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False

    def html(self, name: str) -> str:
        head = ''.join(f'<th scope="col">{_shown(cell)}</th>' for cell in self.header)
        body = '\n'.join(
            f'<tr><th scope="row">{_shown(first)}</th>'
            + ''.join(f'<td>{_shown(cell)}</td>' for cell in cells)
            + '</tr>'
            for first, *cells in self.rows
        )
        caption = _shown(self.caption)
        # a table that is wider than the window is scrolled with the arrow keys
        table = (
            f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{name}">'
            f'<table><caption id="{name}">{caption}</caption>\n'
            f'<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
        )
        if not self.folded:
            return table
        return f'<details><summary>{caption}</summary>{table}</details>'


@dataclass(frozen=True)
class Picture:
    """A picture, a click on which opens it alone.

    Attributes:
        file: path of the file, relative to the page.
        alt: what it shows.
        caption: text below it.
        path: path of a file that it is made from, above the caption; '' for none.
    """

    file: str
    alt: str
    caption: str
    path: str = ''

    def html(self) -> str:
        path = f'<code>{_shown(self.path)}</code>' if self.path else ''
        target, alt = quote(self.file), _shown(self.alt)
        return (
            f'<figure><a href="{target}"><img src="{target}" alt="{alt}" loading="lazy"></a>'
            f'<figcaption>{path}<span>{_shown(self.caption)}</span></figcaption></figure>'
        )


@dataclass(frozen=True)
class Pictures:
    """Pictures next to each other where there is room, or below each other if they are wide."""

    pictures: Sequence[Picture]
    wide: bool = False

    def html(self, name: str) -> str:
        figures = '\n'.join(picture.html() for picture in self.pictures)
        return f'<div class="figures{" wide" if self.wide else ""}">\n{figures}\n</div>'


@dataclass(frozen=True)
class Legend:
    """Colours of lines and their names; colours are #rrggbb."""

    entries: Sequence[tuple[str, str]]

    def html(self, name: str) -> str:
        items = ''.join(
            f'<li><i style="background: {colour}"></i>{_shown(text)}</li>'
            for colour, text in self.entries
        )
        return f'<ul class="legend">{items}</ul>'


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    parts: Sequence[Text | Table | Pictures | Legend]


def write_report_page(
    path: str | Path, title: str, facts: Mapping[str, str], sections: Iterable[Section]
) -> None:
    """Write a page.

    Args:
        path: path of the HTML file; pictures are relative to its folder.
        title: heading.
        facts: names and texts below the heading.
        sections: the parts of the page, with a link to each.

    Raises:
        WriteError: the file cannot be written.
    """
    links, bodies = [], []
    names = (f'part{number}' for number in count(1))
    for number, section in enumerate(sections, 1):
        heading = _shown(section.title)
        parts = '\n'.join(part.html(next(names)) for part in section.parts)
        links.append(f'<a href="#section{number}">{heading}</a>')
        bodies.append(f'<section id="section{number}">\n<h2>{heading}</h2>\n{parts}\n</section>')
    pairs = ''.join(
        f'<dt>{_shown(name)}</dt><dd>{_shown(text)}</dd>' for name, text in facts.items()
    )
    fill_template(
        path,
        'report_page.html',
        printable(title),
        FACTS=f'<dl>{pairs}</dl>',
        LINKS='\n'.join(links),
        SECTIONS='\n'.join(bodies),
    )


def _shown(text: str) -> str:
    """A text in HTML; characters that cannot be printed, as in odd file names, are escaped."""
    return escape(printable(str(text)))
