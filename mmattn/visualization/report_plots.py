"""Plots of a report on a test: curves of detections, and the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from mmattn.errors import cannot_write

from .text import font_families, legible

_MEAN = '#000000'
_GREY = '0.75'
_MAX_COLOURS = 20  # distinguishable colours in one plot
_MAX_CELLS = 16  # classes whose cells are wide enough for numbers
_MAX_NAMES = 200  # classes whose names can be read next to a matrix

Line = tuple[np.ndarray, np.ndarray]  # x and y of its points


def line_colours(count: int) -> list[str]:
    """A colour for each of `count` lines, as #rrggbb; empty for too many."""
    if count > _MAX_COLOURS:
        return []
    name = 'tab10' if count <= 10 else 'tab20'
    return [to_hex(colormaps[name](index)) for index in range(count)]


def plot_precision_recall(lines: Sequence[Line | None], mean: Line, out: str | Path) -> None:
    """Draw precision over recall, both from 0 to 1.

    Args:
        lines: recall and precision of each class; None for a class that has none.
        mean: recall and mean precision, drawn thick and black.
        out: picture file.

    Raises:
        WriteError: the picture cannot be written.
    """
    _plot_lines(lines, mean, out, 'recall', 'precision')


def plot_f1(lines: Sequence[Line | None], mean: Line, out: str | Path, mark: float | None) -> None:
    """Draw F1 over the least score of the detections, both from 0 to 1.

    Args:
        lines: score and F1 of each class; None for a class that has none.
        mean: score and mean F1, drawn thick and black.
        out: picture file.
        mark: score to mark by a vertical line; None for none.

    Raises:
        WriteError: the picture cannot be written.
    """
    _plot_lines(lines, mean, out, 'score', 'F1', mark)


def plot_confusion(
    matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], out: str | Path
) -> None:
    """Draw a confusion matrix, coloured by the share of each row.

    Args:
        matrix: (R, C) counts; rows are true classes, columns predicted ones.
        rows, columns: R and C names.
        out: picture file.

    Raises:
        WriteError: the picture cannot be written.
    """
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    side = min(24.0, 3.5 + 0.42 * max(matrix.shape))
    figure = Figure(figsize=(side + 1, side), layout='constrained')
    axes = figure.subplots()
    image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1, aspect='equal')
    if max(matrix.shape) <= _MAX_NAMES:
        names = [[legible(name, i) for i, name in enumerate(part)] for part in (rows, columns)]
        size = max(4.0, min(9.0, 500 / max(matrix.shape)))
        style = dict(fontfamily=font_families([*rows, *columns]), fontsize=size, parse_math=False)
        axes.set_yticks(range(len(rows)), names[0], **style)
        axes.set_xticks(range(len(columns)), names[1], rotation=90, **style)
    axes.set(xlabel='predicted', ylabel='truth')
    if max(matrix.shape) <= _MAX_CELLS:
        for (row, column), share in np.ndenumerate(shares):
            if matrix[row, column]:
                ink = 'white' if share > 0.5 else 'black'
                place = dict(ha='center', va='center', fontsize=8, color=ink)
                axes.text(column, row, _short_share(share), **place)
    figure.colorbar(image, shrink=0.7, label='share of the true class')
    _save(figure, out)


def _plot_lines(
    lines: Sequence[Line | None],
    mean: Line,
    out: str | Path,
    xlabel: str,
    ylabel: str,
    mark: float | None = None,
) -> None:
    figure = Figure(figsize=(6.4, 4.8), layout='constrained')
    axes = figure.subplots()
    colours = line_colours(len(lines)) or [_GREY] * len(lines)
    for line, colour in zip(lines, colours, strict=True):
        if line is not None:
            axes.plot(*line, color=colour, linewidth=1.2 if colour != _GREY else 0.6)
    axes.plot(*mean, color=_MEAN, linewidth=2.5)
    if mark is not None:
        axes.axvline(mark, color=_MEAN, linewidth=0.8, linestyle='--')
    _frame(axes, xlabel, ylabel)
    _save(figure, out)


def _frame(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.grid(alpha=0.3)


def _short_share(share: float) -> str:
    """A share from 0 to 1 in two digits, such as .07; 1 for all of it."""
    text = f'{share:.2f}'
    return '1' if text == '1.00' else text[1:]


def _save(figure: Figure, out: str | Path) -> None:
    try:
        figure.savefig(out, dpi=110)
    except OSError as error:
        raise cannot_write(out, error) from error
