"""Names of classes are drawn as their font draws them, or are said to be escaped."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw, ImageFont

from mmattn.visualization import text as module
from mmattn.visualization.comparison import side_by_side
from mmattn.visualization.text import DEJAVU, SIZE, draw_text, legible, missing, text_width


@pytest.fixture
def said(monkeypatch):
    """No font but DejaVu Sans, and what is said of it."""
    lines = []
    monkeypatch.setattr(module, 'warn', lines.append)
    fonts(monkeypatch)
    yield lines
    forget()


def forget():
    for function in module._font, module._system_fonts, module._face:
        function.cache_clear()
    module._warned.clear()


def fonts(monkeypatch, *paths):
    forget()
    monkeypatch.setattr(module, 'findSystemFonts', lambda: [str(path) for path in paths])


def drawn(name, width=120):
    picture = np.full((22, width, 3), 255, np.uint8)
    draw_text(picture, name, (2, 15))
    return picture


def by_pillow(name, path=DEJAVU, width=120):
    image = Image.new('RGB', (width, 22), 'white')
    font = ImageFont.truetype(str(path), SIZE)
    ImageDraw.Draw(image).text((2, 15), name, 'black', font, anchor='ls')
    return np.asarray(image)


@pytest.mark.parametrize('name', ['Grün', 'Böschung', 'Дорога', 'čeština', 'road'])
def test_a_name_is_drawn_as_its_font_draws_it(name, said):
    assert legible(name, 4) == name and not said
    assert np.array_equal(drawn(name), by_pillow(name))
    assert (drawn(name) < 128).any() and text_width(name) > 10
    if not name.isascii():
        other = name.encode('ascii', 'replace').decode()
        assert not np.array_equal(drawn(name), drawn(other))


def test_letters_in_two_parts_are_one(said):
    assert legible('Gru\u0308n', 0) == 'Grün'


def test_a_name_that_no_font_has_is_escaped_and_that_is_said_once(said):
    assert missing('a红色') == {'红', '色'}
    assert [legible('红色 x', 7) for _ in range(2)] == ['7 \\u7ea2\\u8272 x'] * 2
    assert said == [
        'no font here has the characters 红色 of the class 红色 x: pictures have 7 '
        '\\u7ea2\\u8272 x. Install a font that has them.'
    ]
    panels = {'': np.zeros((4, 200, 3), np.uint8)}
    red, water = (side_by_side(panels, [0], (n,), [(9, 9, 9)]) for n in ('红', '水'))
    assert not np.array_equal(red, water)


def test_a_font_of_the_system_that_has_the_name_is_taken(said, monkeypatch, tmp_path):
    """What the message advises."""
    pen = TTGlyphPen(None)
    for point in (100, 0), (100, 700), (800, 700), (800, 0):
        (pen.lineTo if point[1] or point[0] > 100 else pen.moveTo)(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(['.notdef', 'red'])
    builder.setupCharacterMap({0x7EA2: 'red'})
    builder.setupGlyf({'.notdef': pen.glyph(), 'red': pen.glyph()})
    builder.setupHorizontalMetrics({'.notdef': (900, 100), 'red': (900, 100)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable(dict(familyName='Red', styleName='Regular'))
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / 'red.ttf')
    (tmp_path / 'broken.ttf').write_bytes(b'no font')
    fonts(monkeypatch, tmp_path / 'broken.ttf', tmp_path / 'red.ttf')
    assert legible('红', 0) == '红' and not said
    assert np.array_equal(drawn('红'), by_pillow('红', tmp_path / 'red.ttf'))
    assert legible('红水', 1) == '1 红\\u6c34'


def test_what_would_break_a_line_is_escaped(said):
    assert legible('a\nb\x1b', 0) == 'a\\nb\\x1b'
