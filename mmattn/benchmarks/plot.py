"""Plot time and memory of blocks and their baselines against the size of the map."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from mmattn.errors import cannot_write

from .compare import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Okabe and Ito's colours, safe for the colour-blind; markers, for prints without colours
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#8C8C00')
_MARKERS = 'osD^vP*h'
_PANELS = {
    'step': ('forward and backward (ms)', 1),
    'saved': ('saved for backward, without the input (MB)', 1e6),
}
_CROSS = dict(marker='x', markersize=9, markeredgewidth=2)
MAX_CURVES = len(_COLOURS)
FORMATS = ('.png', '.pdf', '.svg')


def plot_benchmark(curves: list[Curve], title: str, out: str | Path) -> None:
    """Draw both panels, ours solid and the baseline dashed, with logarithmic axes.

    A cross marks a size that the baseline was refused; the dotted line to it is extrapolated.

    Args:
        curves: curves to draw, 1 to `MAX_CURVES`.
        title: title of the figure, such as the machine.
        out: image file; its suffix is one of `FORMATS`.

    Raises:
        WriteError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(12, 5.6), layout='constrained')
    panels = figure.subplots(1, 2)
    for axes, (measure, (label, unit)) in zip(panels, _PANELS.items(), strict=True):
        for index, curve in enumerate(curves):
            # the first markers are the largest, so that later ones do not cover them
            style = dict(color=_COLOURS[index], marker=_MARKERS[index], markersize=9 - index)
            for points, kind, fill in (
                (curve.ours[measure], '-', 'full'),
                (curve.theirs[measure], '--', 'none'),
            ):
                axes.plot(
                    list(points), [y / unit for y in points.values()], kind, fillstyle=fill, **style
                )
            if measure in curve.refused:
                _refusal(axes, curve, measure, unit, _COLOURS[index])
        axes.set(xscale='log', yscale='log', xlabel='pixels of the map', ylabel=label)
        sizes = sorted({pixels for curve in curves for pixels in curve.ours[measure]})
        axes.set_xticks(sizes, [_square(pixels) for pixels in sizes])
        axes.set_xticks([], minor=True)
        axes.grid(which='major', alpha=0.3)
    entries = [
        Line2D([], [], color=_COLOURS[i], marker=_MARKERS[i], label=_label(curve))
        for i, curve in enumerate(curves)
    ]
    grey = dict(color='0.3', marker='o')
    entries.append(Line2D([], [], **grey, label='mmattn'))
    entries.append(
        Line2D([], [], **grey, linestyle='--', fillstyle='none', label='baseline (in brackets)')
    )
    if any(curve.refused for curve in curves):
        entries.append(
            Line2D([], [], color='0.3', linestyle=':', **_CROSS, label='baseline refused')
        )
    figure.legend(handles=entries, loc='outside lower center', ncols=4, fontsize='small')
    figure.suptitle(title, fontsize='medium')
    try:
        figure.savefig(out, dpi=120)
    except OSError as error:
        raise cannot_write(out, error, 'Choose another --plot.') from error


def _refusal(axes: 'Axes', curve: Curve, measure: str, unit: float, colour: str) -> None:
    """A cross at the extrapolated time or memory, with the reason next to it."""
    pixels, reason = curve.refused[measure]
    points = [(x, y / unit) for x, y in curve.theirs[measure].items()]
    if len(points) < 2:  # too few to extrapolate
        return
    (x0, y0), (x1, y1) = points[-2:]
    y = y1 * (pixels / x1) ** (math.log(y1 / y0) / math.log(x1 / x0))
    axes.plot([x1, pixels], [y1, y], ':', color=colour)
    axes.plot([pixels], [y], color=colour, **_CROSS)
    position = dict(textcoords='offset points', ha='right', va='center')
    axes.annotate(f'{curve.baseline} {reason}', (pixels, y), (-9, 0), **position, color=colour)


def _label(curve: Curve) -> str:
    batch, channels = curve.size
    return f'{curve.name}, {batch}x{channels} ({curve.baseline})'


def _square(pixels: int) -> str:
    side = math.isqrt(pixels)
    return f'{side}\N{SUPERSCRIPT TWO}' if side * side == pixels else f'{pixels:,}'
