"""Text on pictures in any script that an installed font covers."""

import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.font_manager import FontProperties, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from mmattn.errors import printable
from mmattn.log import warn

SIZE = 12  # pixels
DEJAVU = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf'

_warned: set[str] = set()


def draw_text(picture: np.ndarray, text: str, at: tuple[int, int]) -> None:
    """Draw black text into a picture.

    Args:
        picture: (H, W, 3) uint8; changed.
        text: characters outside `missing` only.
        at: left end of the base line, x and y in pixels.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    x, y = at
    for path, part in _runs(text):
        font = _loaded(path)
        draw.text((x, y), part, (0, 0, 0), font, anchor='ls')
        x += font.getlength(part)
    picture[:] = np.asarray(image)


def text_width(text: str) -> int:
    """Width of a text in pixels."""
    return -int(-sum(_loaded(path).getlength(part) for path, part in _runs(text)) // 1)


def legible(name: str, index: int) -> str:
    """The name of a class in characters that can be drawn.

    If no font has them, its index and the name in escapes, such as `0 \\u7ea2`, with a warning
    once.
    """
    name = printable(unicodedata.normalize('NFC', str(name)))
    undrawable = missing(name)
    if not undrawable:
        return name
    shown = ''.join(c.encode('unicode_escape').decode() if c in undrawable else c for c in name)
    shown = f'{index} {shown}'
    if name not in _warned:
        _warned.add(name)
        warn(
            f'no font here has the characters {"".join(sorted(undrawable))} of the class {name}: '
            f'pictures have {shown}. Install a font that has them.'
        )
    return shown


def font_families(texts: Iterable[str]) -> list[str]:
    """Names of fonts with all characters of some texts, for `fontfamily` of matplotlib."""
    families = ['DejaVu Sans']
    for path in sorted({_font(c) or str(DEJAVU) for c in set().union(*texts)} - {str(DEJAVU)}):
        fontManager.addfont(path)
        families.append(FontProperties(fname=path).get_name())
    return families


def missing(text: str) -> set[str]:
    """The characters of a text that no font has."""
    return {c for c in set(text) if _font(c) is None}


def _runs(text: str) -> list[tuple[str, str]]:
    """A text in parts, each with the path of a font that has its characters."""
    runs: list[tuple[str, str]] = []
    for c in text:
        path = _font(c) or str(DEJAVU)
        if runs and runs[-1][0] == path:
            runs[-1] = path, runs[-1][1] + c
        else:
            runs.append((path, c))
    return runs


@lru_cache(maxsize=4096)
def _font(c: str) -> str | None:
    """Path of a font that has a character: DejaVu Sans, else one of the system, or None."""
    if _has(str(DEJAVU), c):
        return str(DEJAVU)
    return next((path for path in _system_fonts() if _has(path, c)), None)


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[str, ...]:
    return tuple(sorted(findSystemFonts()))


def _has(path: str, c: str) -> bool:
    face = _face(path)
    return face is not None and bool(face.get_char_index(ord(c)))


@cache
def _face(path: str) -> FT2Font | None:
    try:
        _loaded(path)  # some fonts cannot be drawn at this size
        return FT2Font(path)
    except (OSError, RuntimeError, ValueError):
        return None


@cache
def _loaded(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, SIZE)
