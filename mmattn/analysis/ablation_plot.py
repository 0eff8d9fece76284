"""Plots of an ablation: the metric of blocks against their cost, and their differences."""

from pathlib import Path
from typing import TYPE_CHECKING

from mmattn.errors import cannot_write

from .ablation_results import Ablation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COSTS = dict(macs=('GMACs, one image', 1e9), ms=('ms, one image', 1.0))
_ON_FRONT, _OFF_FRONT = '#D55E00', '#0072B2'


def pareto(points: dict[str, tuple[float, float]]) -> list[str]:
    """Names on the Pareto front of name -> (cost, value): no other is cheaper and better."""
    front, best = [], float('-inf')
    for name, (_, value) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if value > best:
            front.append(name)
            best = value
    return front


def plot_pareto(ablation: Ablation, out: str | Path) -> None:
    """Draw the mean and its 95 % interval against MACs and time, with the Pareto front.

    Args:
        ablation: results to draw.
        out: image file.

    Raises:
        WriteError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    results = ablation.results
    costs = {name: axis for name, axis in _COSTS.items() if all(r.cost.get(name) for r in results)}
    figure = Figure(figsize=(5.5 * max(1, len(costs)), 4.6), layout='constrained')
    for index, (name, (label, unit)) in enumerate(costs.items(), 1):
        axes = figure.add_subplot(1, len(costs), index)
        front = pareto({r.attention: (r.cost[name], r.mean) for r in results})
        for r in results:
            colour = _ON_FRONT if r.attention in front else _OFF_FRONT
            x = r.cost[name] / unit
            half = r.interval[1] - r.mean if r.interval else 0
            axes.errorbar(x, r.mean, yerr=half, fmt='o', color=colour, capsize=3)
            axes.annotate(
                r.attention, (x, r.mean), (6, 4), textcoords='offset points', fontsize='small'
            )
        line = sorted((r.cost[name] / unit, r.mean) for r in results if r.attention in front)
        axes.step(*zip(*line, strict=True), where='post', color=_ON_FRONT, alpha=0.4)
        axes.set(xlabel=label, ylabel=f'{ablation.metric}, mean and 95 % interval')
        axes.grid(alpha=0.3)
    figure.suptitle(ablation.title)
    _save(figure, out)


def plot_differences(ablations: list[Ablation], out: str | Path) -> None:
    """Draw the difference of each block to the plain network with its 95 % interval.

    One panel for each config, on one axis of blocks. What is more than chance is in another
    colour; in the gray band lies what the config could not have seen.

    Args:
        ablations: results to draw.
        out: image file.

    Raises:
        WriteError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    names = list(
        dict.fromkeys(
            r.attention for a in ablations for r in a.results if r.attention != a.baseline
        )
    )
    size = (1.5 + 4 * len(ablations), 1.6 + 0.3 * len(names))
    figure = Figure(figsize=size, layout='constrained')
    shared = figure.subplots(1, len(ablations), sharey=True, squeeze=False)[0]
    for axes, ablation in zip(shared, ablations):
        for r in ablation.results:
            if r.difference is None:
                continue
            y, value = names.index(r.attention), r.difference.value
            half = r.difference.interval[1] - value if r.difference.interval else 0
            colour = _ON_FRONT if r.seen else _OFF_FRONT
            axes.errorbar(value, y, xerr=half, fmt='o', color=colour, capsize=3)
            if r.detectable is not None:
                axes.fill_betweenx(
                    [y - 0.4, y + 0.4], -r.detectable, r.detectable, color='0.9', linewidth=0
                )
        axes.axvline(0, color='0.4', linewidth=1)
        axes.set(xlabel=f'difference in {ablation.metric}', title=ablation.title)
        axes.grid(axis='x', alpha=0.3)
    shared[0].set_yticks(range(len(names)), names)
    shared[0].set_ylim(len(names) - 0.5, -0.5)  # the first on top
    _save(figure, out)


def _save(figure: 'Figure', out: str | Path) -> None:
    try:
        figure.savefig(out, dpi=110)
    except OSError as error:
        raise cannot_write(out, error) from error
