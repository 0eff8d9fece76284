"""Drawings as SVG: a graph of steps in layers, from top to bottom."""

from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from .data_flow import DataFlow, Step

_FONT, _LETTER = 13, 7.2  # size and mean width of a letter, in pixels
_ROW, _GAP, _MARGIN = 78, 22, 14  # height of a layer, least distance of boxes, margin
_BOX = 42  # height of a box
INPUT, LAYER, OPERATION = '#dbeafe', '#fef3c7', '#f3f4f6'
_STYLE = (
    f'text{{font:{_FONT}px system-ui,sans-serif;fill:#111827;text-anchor:middle}}'
    '.small{font-size:11px;fill:#4b5563}'
)


@dataclass(eq=False)
class _Node:
    """A box, or for `step` None a place where a line passes a layer."""

    step: Step | None
    width: float
    above: list['_Node']
    x: float = 0


def draw_flow(flow: DataFlow, title: str) -> str:
    """SVG of a data flow.

    Args:
        flow: the steps.
        title: what a screen reader says.
    """
    layers, boxes = _layers(flow)
    _place(layers)
    shift = _MARGIN - min(node.x - node.width / 2 for layer in layers for node in layer)
    right = max(node.x + node.width / 2 for layer in layers for node in layer)
    width, height = right + shift + _MARGIN, len(layers) * _ROW - (_ROW - _BOX) + 2 * _MARGIN
    depth = {id(node): level for level, layer in enumerate(layers) for node in layer}
    lines, shapes = [], []
    for level, layer in enumerate(layers):
        for node in layer:
            node.x += shift
            top = _MARGIN + level * _ROW
            if node.step is not None:
                is_input = boxes.index(node) < flow.inputs
                shapes.append(_box(node, top, is_input))
    for level, layer in enumerate(layers):
        for node in layer:
            lines += [_line(above, node, depth[id(above)], level) for above in node.above]
    return svg(width, height, title, [*lines, *shapes])


def svg(width: float, height: float, title: str, parts: list[str]) -> str:
    """A drawing on white, which can be read on a dark page, too."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label={quoteattr(title)}>\n'
        f'<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#6b7280"/></marker></defs>\n'
        f'<rect width="100%" height="100%" rx="6" fill="#fff"/>\n' + '\n'.join(parts) + '\n</svg>\n'
    )


def box(x: float, y: float, width: float, height: float, fill: str, *texts: str) -> str:
    """A box around a centre, with a line of text for each; all but the first are small."""
    left, top = x - width / 2, y - height / 2
    parts = [
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="5" '
        f'fill="{fill}" stroke="#9ca3af"/>'
    ]
    first = y + 4.5 - 7.5 * (len(texts) - 1)
    for number, text in enumerate(texts):
        kind = ' class="small"' if number else ''
        line = first + 15 * number
        parts.append(f'<text x="{x:.1f}" y="{line:.1f}"{kind}>{escape(text)}</text>')
    return ''.join(parts)


def text_width(*texts: str) -> float:
    """Width of a box for lines of text."""
    return max(len(text) for text in texts) * _LETTER + 20


def _layers(flow: DataFlow) -> tuple[list[list[_Node]], list[_Node]]:
    """Boxes by the longest way from an input, with a node in each layer that a line passes."""
    levels: list[int] = []
    for step in flow.steps:
        levels.append(1 + max((levels[index] for index in step.sources), default=-1))
    layers: list[list[_Node]] = [[] for _ in range(max(levels) + 1)]
    boxes: list[_Node] = []
    passing: dict[tuple[int, int], _Node] = {}  # (step, layer) -> its line there
    for level, step in zip(levels, flow.steps, strict=True):
        node = _Node(step, text_width(*_texts(step)), [])
        for source in step.sources:
            above = boxes[source]
            for between in range(levels[source] + 1, level):
                if (source, between) not in passing:
                    passing[source, between] = _Node(None, 8, [above])
                    layers[between].append(passing[source, between])
                above = passing[source, between]
            node.above.append(above)
        layers[level].append(node)
        boxes.append(node)
    return layers, boxes


def _place(layers: list[list[_Node]]) -> None:
    """Set `x` of all nodes: few crossings, and each near the mean of its neighbours."""
    below: dict[int, list[_Node]] = {}
    for layer in layers:
        for node in layer:
            for above in node.above:
                below.setdefault(id(above), []).append(node)
    for layer in layers:
        _spread(layer, [0.0] * len(layer))
    for turn in range(16):
        downwards = turn % 2 == 0
        for layer in layers if downwards else reversed(layers):
            wanted = []
            for node in layer:
                near = node.above if downwards else below.get(id(node), [])
                wanted.append(sum(n.x for n in near) / len(near) if near else node.x)
            if turn < 8:
                order = sorted(range(len(layer)), key=wanted.__getitem__)
                layer[:] = [layer[i] for i in order]
                wanted = [wanted[i] for i in order]
            _spread(layer, wanted)


def _spread(layer: list[_Node], wanted: list[float]) -> None:
    """Put nodes in their order near the wanted places, without overlaps."""
    if not layer:
        return
    places = wanted[:1]
    for before, node, x in zip(layer, layer[1:], wanted[1:], strict=False):
        least = places[-1] + (before.width + node.width) / 2 + _GAP
        places.append(max(x, least))
    offset = sum(w - p for w, p in zip(wanted, places, strict=True)) / len(layer)
    for node, x in zip(layer, places, strict=True):
        node.x = x + offset


def _texts(step: Step) -> tuple[str, str]:
    name = step.name
    if step.layers:
        shown = ', '.join(step.layers[:2]) + (', …' if len(step.layers) > 2 else '')
        name = f'{name} · {shown}'
    return name, ' '.join(f'({", ".join(shape)})' for shape in step.shapes)


def _box(node: _Node, top: float, is_input: bool) -> str:
    fill = INPUT if is_input else LAYER if node.step.layers else OPERATION
    return box(node.x, top + _BOX / 2, node.width, _BOX, fill, *_texts(node.step))


def _line(above: _Node, node: _Node, start: int, end: int) -> str:
    """A curve from one layer to the next, straight where it passes a layer."""
    y1 = _MARGIN + start * _ROW + _BOX
    y2 = _MARGIN + end * _ROW
    half = (y2 - y1) / 2
    curve = f'M{above.x:.1f} {y1:.1f}C{above.x:.1f} {y1 + half:.1f} {node.x:.1f} {y2 - half:.1f} '
    curve += f'{node.x:.1f} {y2:.1f}'
    if node.step is None:
        curve += f'L{node.x:.1f} {y2 + _BOX:.1f}'
    arrow = ' marker-end="url(#arrow)"' if node.step else ''
    return f'<path d="{curve}" fill="none" stroke="#6b7280" stroke-width="1.3"{arrow}/>'
