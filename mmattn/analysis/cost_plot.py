"""Plot the cost of a network's parts and attention blocks as bars."""

from pathlib import Path

from mmattn.errors import cannot_write

from .cost import Cost

_PART, _BLOCK = '#0072B2', '#D55E00'
_MAX_BARS = 40  # more could not be read


def plot_cost(cost: Cost, title: str, out: str | Path) -> None:
    """Draw MACs, memory saved for backward and time of every part and attention block.

    Args:
        cost: cost to draw, see `measure_cost`.
        title: title of the figure.
        out: image file.

    Raises:
        WriteError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state
    from matplotlib.patches import Patch

    rows = cost.rows[1:]
    if len(rows) > _MAX_BARS:  # the parts, and the blocks that save most
        blocks = sorted((row for row in rows if row.block), key=lambda row: -row.saved_bytes)
        shown = {row.path for row in blocks[: max(0, _MAX_BARS - len(rows) + len(blocks))]}
        rows = [row for row in rows if not row.block or row.path in shown]
    panels = {
        'GMACs, one image': [row.macs / 1e9 for row in rows],
        'MB saved for backward, one image': [row.saved_bytes / 1e6 for row in rows],
    }
    if cost.rows[0].ms is not None:
        panels['ms, one image in testing'] = [row.ms or 0.0 for row in rows]
    figure = Figure(figsize=(4 + 3.5 * len(panels), 1.6 + 0.24 * len(rows)), layout='constrained')
    for index, (label, values) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        colours = [_BLOCK if row.block else _PART for row in rows]
        axes.barh(range(len(rows)), values, color=colours)
        axes.invert_yaxis()
        axes.set_yticks(range(len(rows)), [row.path for row in rows] if not index else [])
        axes.tick_params(axis='y', labelsize='small')
        axes.set_xlabel(label)
        axes.grid(axis='x', alpha=0.3)
    if any(row.block for row in rows):
        handles = [
            Patch(color=_PART, label='part of the network'),
            Patch(color=_BLOCK, label='attention block, counted in its part, too'),
        ]
        figure.legend(handles=handles, loc='outside lower center', ncols=2, fontsize='small')
    height, width = cost.size
    figure.suptitle(f'{title} at {width}x{height}')
    try:
        figure.savefig(out, dpi=110)
    except OSError as error:
        raise cannot_write(out, error, 'Choose another --plot.') from error
