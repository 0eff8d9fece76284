"""Plot the results of the context probe as a heat map of blocks by tasks."""

from itertools import groupby
from pathlib import Path

from mmattn.errors import cannot_write

from .probe_network import rows
from .probe_results import ProbeResults
from .probe_tasks import CEILING, CHANCE, TASKS

_DARK = 0.6  # share of the colour scale from which numbers are white


def plot_probe(results: ProbeResults, out: str | Path) -> None:
    """Draw the mean accuracy of every block on every task, with lines between groups of blocks.

    Args:
        results: results to draw.
        out: image file.

    Raises:
        WriteError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    blocks, tasks = results.blocks(), results.tasks()
    means = [
        [summary.mean if (summary := results.summary(block, task)) else None for task in tasks]
        for block in blocks
    ]
    values = [[float('nan') if value is None else value for value in row] for row in means]
    size = (4.6 + 0.85 * len(tasks), 1.6 + 0.26 * len(blocks))
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots()
    image = axes.imshow(values, cmap='YlGnBu', vmin=CHANCE, vmax=CEILING, aspect='auto')
    for y, row in enumerate(means):
        for x, value in enumerate(row):
            text = '-' if value is None else f'{value:.0f}'
            is_dark = value is not None and value > CHANCE + _DARK * (CEILING - CHANCE)
            colour = 'white' if is_dark else 'black'
            axes.text(x, y, text, ha='center', va='center', fontsize='small', color=colour)
    labels = [f'{task}\n{_wrapped(TASKS[task].ability)}' for task in tasks]
    axes.set_xticks(range(len(tasks)), labels, fontsize='small')
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(blocks)), blocks, fontsize='small')
    axes.tick_params(length=0)
    groups = rows()
    start = 0
    for group, members in groupby(blocks, lambda block: groups.get(block, '')):
        end = start + len(list(members))
        if end < len(blocks):
            axes.axhline(end - 0.5, color='black', linewidth=0.8)
        middle = (start + end - 1) / 2
        axes.annotate(
            group, (1.01, middle), xycoords=('axes fraction', 'data'), va='center',
            fontsize='small', annotation_clip=False,
        )  # fmt: skip
        start = end
    seeds = {seed for _, _, seed in results.cells}
    figure.colorbar(
        image, ax=axes, orientation='horizontal', fraction=0.03, pad=0.01,
        label=f'accuracy in %, mean over {len(seeds)} seed{"s" * (len(seeds) > 1)}; '
        f'chance {CHANCE:.0f}',
    )  # fmt: skip
    try:
        figure.savefig(out, dpi=110)
    except OSError as error:
        raise cannot_write(out, error, 'Choose another --plot.') from error


def _wrapped(text: str) -> str:
    """Two lines, broken before the last word."""
    start, _, last = text.rpartition(' ')
    return f'{start}\n{last}' if start else text
