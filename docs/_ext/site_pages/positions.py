"""The figure of docs/positions.md: a residual block of a ResNet with its positions for plugins.

PYTHONPATH=docs/_ext python -m site_pages.positions docs/positions.svg
"""

import sys
from itertools import pairwise
from pathlib import Path

from .drawing import INPUT, LAYER, OPERATION, box, svg

# what runs one after another in a bottleneck, and the positions in between, which a test runs
SEQUENCE = (
    'x', 'conv1', 'norm, act', '@after_conv1', 'conv2', 'norm, act', '@after_conv2',
    'conv3', 'norm', '@after_conv3 @before_add', '+', 'act', '@after_add',
    'more blocks', '@after_stage',
)  # fmt: skip
_Y, _GAP, _HEIGHT = 120, 14, 40
_WIDTHS = {'x': 34, '+': 30, 'act': 48, 'norm': 56, 'norm, act': 78, 'more blocks': 96}


def draw() -> str:
    """The figure as SVG."""
    centres, parts, x = [], [], 28.0
    for item in SEQUENCE:
        width = 16 if item.startswith('@') else _WIDTHS.get(item, 62)
        centres.append(x + width / 2)
        x += width + _GAP
    total = x + 30
    for start, end in pairwise(centres):
        parts.append(_arrow(f'M{start:.1f} {_Y}H{end - 8:.1f}'))
    first, add = centres[0], centres[SEQUENCE.index('+')]
    parts.append(_arrow(f'M{first:.1f} {_Y - 20}V{_Y - 58}H{add:.1f}V{_Y - 17}'))
    parts.append(_note((first + add) / 2, _Y - 64, 'identity, or the downsampling'))
    for item, centre in zip(SEQUENCE, centres):
        if item.startswith('@'):
            parts += _position(centre, item.replace('@', '').split())
        else:
            fill = LAYER if item.startswith('conv') else INPUT if item == 'x' else OPERATION
            parts.append(box(centre, _Y, _WIDTHS.get(item, 62), _HEIGHT, fill, item))
    conv = centres[SEQUENCE.index('conv2')]
    parts.append(_arrow(f'M{conv:.1f} {_Y + 62}V{_Y + 22}'))
    parts.append(_code(conv, _Y + 78, "replace='….conv2'"))
    left, right = first - 24, centres[SEQUENCE.index('act')] + 32
    parts.insert(
        0,
        f'<rect x="{left:.1f}" y="{_Y - 96}" width="{right - left:.1f}" height="194" rx="8" '
        'fill="none" stroke="#9ca3af" stroke-dasharray="5 4"/>',
    )
    parts.append(_note(left + 62, _Y - 80, 'a residual block'))
    return svg(total, 236, 'Positions in a residual block of a ResNet', parts)


def _position(x: float, names: list[str]) -> list[str]:
    """A dot, with its names below."""
    parts = [f'<circle cx="{x:.1f}" cy="{_Y}" r="7" fill="#dc2626"/>']
    parts += [_code(x, _Y + 32 + 15 * row, name) for row, name in enumerate(names)]
    return parts


def _arrow(path: str) -> str:
    line = 'fill="none" stroke="#6b7280" stroke-width="1.3" marker-end="url(#arrow)"'
    return f'<path d="{path}" {line}/>'


def _code(x: float, y: float, text: str) -> str:
    style = 'font:600 11.5px ui-monospace,monospace'
    return f'<text x="{x:.1f}" y="{y:.1f}" style="{style}">{text}</text>'


def _note(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="small">{text}</text>'


if __name__ == '__main__':
    Path(sys.argv[1]).write_text(draw(), encoding='utf-8')
