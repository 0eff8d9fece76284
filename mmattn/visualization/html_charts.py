"""Charts as HTML and SVG, which a browser draws without a script: bars, histograms, sizes."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 420, 240  # pixels of an SVG chart
_LEFT, _TOP, _RIGHT, _BOTTOM = 52, 12, 12, 40  # pixels around its plot
_BINS = 24  # bins of a histogram
_BLUE = '#0072b2'


class Bar(NamedTuple):
    """One bar of a chart.

    Attributes:
        name: text on the left.
        parts: lengths and CSS colours of its parts, from left to right.
        text: text on the right.
        swatch: CSS colour of a square left of the name; '' for none.
    """

    name: str
    parts: Sequence[tuple[float, str]]
    text: str
    swatch: str = ''


def css_colour(colour: Sequence[int]) -> str:
    """Red, green and blue from 0 to 255 as a colour in CSS."""
    return '#{:02x}{:02x}{:02x}'.format(*colour)


def swatch(name: str, colour: str) -> str:
    """A square of a colour and a name."""
    return f'<span class="class"><i style="background: {colour}"></i> {escape(name)}</span>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names and their CSS colours in a row."""
    return f'<p class="legend">{" ".join(swatch(*entry) for entry in entries)}</p>'


def bar_chart(title: str, bars: Sequence[Bar], key: Sequence[tuple[str, str]] = ()) -> str:
    """Horizontal bars; the longest fills the width.

    Args:
        title: what the lengths are.
        bars: the bars, from top to bottom.
        key: names and CSS colours of the parts.
    """
    longest = max((sum(value for value, _ in bar.parts) for bar in bars), default=0) or 1
    rows = []
    for bar in bars:
        parts = ''.join(
            f'<i style="width: {100 * value / longest:.3f}%; background: {colour}"></i>'
            for value, colour in bar.parts
            if value
        )
        name = swatch(bar.name, bar.swatch) if bar.swatch else escape(bar.name)
        rows.append(
            f'<tr><th>{name}</th><td class="bar">{parts}</td><td>{escape(bar.text)}</td></tr>'
        )
    table = f'<div class="scroll"><table class="bars">{"".join(rows)}</table></div>'
    return _chart(title, (legend(key) if key else '') + table)


def histogram(title: str, counts: Mapping[int, int], x_label: str, y_label: str) -> str:
    """Counts of whole numbers from 0 as columns; several numbers share one if there are many.

    Args:
        title: heading.
        counts: how often each number occurs.
        x_label, y_label: what the numbers are, and what is counted.
    """
    if not counts:
        return ''
    step = -(-(max(counts) + 1) // _BINS)
    bins = [0] * (max(counts) // step + 1)
    for number, count in counts.items():
        bins[number // step] += count
    tallest, width = max(bins), (_WIDTH - _LEFT - _RIGHT) / len(bins)
    marks = []
    for index, count in enumerate(bins):
        first, last = index * step, (index + 1) * step - 1
        span = str(first) if step == 1 else f'{first} to {last}'
        height = count / tallest * (_HEIGHT - _TOP - _BOTTOM)
        x, y = _LEFT + index * width, _HEIGHT - _BOTTOM - height
        marks.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(1, width - 1):.1f}" height="{height:.1f}" '
            f'fill="{_BLUE}"><title>{span} {escape(x_label)}: {count} {escape(y_label)}</title>'
            '</rect>'
        )
    every = -(-len(bins) // 6)
    ticks = {_LEFT + (i + 0.5) * width: i * step for i in range(0, len(bins), every)}
    return _chart(title, _svg(marks, ticks, {0: 0, tallest: 1}, x_label, y_label))


def size_chart(title: str, counts: Mapping[tuple[int, int], int]) -> str:
    """Image sizes as circles at width and height, whose areas are the numbers of images.

    Args:
        title: heading.
        counts: how often each (width, height) in pixels occurs.
    """
    if not counts:
        return ''
    widest, highest = (max(size[axis] for size in counts) for axis in (0, 1))
    plot = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    scale, most, marks = (1.08 * widest, 1.08 * highest), max(counts.values()), []
    for (width, height), count in sorted(counts.items(), key=lambda item: -item[1]):
        x = _LEFT + width / scale[0] * plot[0]
        y = _HEIGHT - _BOTTOM - height / scale[1] * plot[1]
        radius = max(2, 9 * math.sqrt(count / most))
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{_BLUE}" '
            f'fill-opacity="0.6"><title>{width} x {height}: {count} images</title></circle>'
        )
    x_ticks = {_LEFT: 0, _LEFT + plot[0] / 1.08: widest}
    svg = _svg(marks, x_ticks, {0: 0, highest: 1 / 1.08}, 'width in pixels', 'height')
    frequent = sorted(counts.items(), key=lambda item: -item[1])[:5]
    listed = ', '.join(f'{width} x {height}: {count}' for (width, height), count in frequent)
    more = f' and {len(counts) - 5} other sizes' if len(counts) > 5 else ''
    return _chart(title, f'{svg}<p class="soft">{listed}{more}</p>')


def _chart(title: str, content: str) -> str:
    return f'<section class="chart"><h2>{escape(title)}</h2>{content}</section>'


def _svg(
    marks: list[str],
    x_ticks: Mapping[float, int],
    y_ticks: Mapping[int, float],
    x_label: str,
    y_label: str,
) -> str:
    """Marks with axes; x ticks by their pixel, y ticks with their fraction of the height."""
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    texts = [
        f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{number}</text>'
        for x, number in x_ticks.items()
    ]
    for number, fraction in y_ticks.items():
        y = bottom - fraction * (bottom - _TOP)
        texts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number}</text>')
    middle = (_LEFT + right) / 2
    texts.append(
        f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    half = (_TOP + bottom) / 2
    texts.append(
        f'<text x="14" y="{half}" text-anchor="middle" transform="rotate(-90 14 {half})">'
        f'{escape(y_label)}</text>'
    )
    axes = f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#5b6475"/>'
    content = ''.join([*marks, axes, *texts])
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{content}</svg>'
