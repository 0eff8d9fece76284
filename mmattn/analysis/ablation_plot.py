"""Plot the metric of blocks against their cost, with the Pareto front."""

from pathlib import Path

from mmattn.errors import cannot_write

from .ablation_results import BlockResult

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


def plot_pareto(results: list[BlockResult], metric: str, title: str, out: str | Path) -> None:
    """Draw mean and standard deviation against MACs and time.

    Args:
        results: results to draw, see `summarise`.
        metric: name of the metric.
        title: title of the figure.
        out: image file.

    Raises:
        WriteError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    costs = {name: axis for name, axis in _COSTS.items() if all(r.cost.get(name) for r in results)}
    figure = Figure(figsize=(5.5 * max(1, len(costs)), 4.6), layout='constrained')
    for index, (name, (label, unit)) in enumerate(costs.items(), 1):
        axes = figure.add_subplot(1, len(costs), index)
        front = pareto({r.attention: (r.cost[name], r.mean) for r in results})
        for r in results:
            colour = _ON_FRONT if r.attention in front else _OFF_FRONT
            x = r.cost[name] / unit
            axes.errorbar(x, r.mean, yerr=r.std or 0, fmt='o', color=colour, capsize=3)
            axes.annotate(
                r.attention, (x, r.mean), (6, 4), textcoords='offset points', fontsize='small'
            )
        line = sorted((r.cost[name] / unit, r.mean) for r in results if r.attention in front)
        axes.step(*zip(*line, strict=True), where='post', color=_ON_FRONT, alpha=0.4)
        axes.set(xlabel=label, ylabel=f'{metric}, mean ± standard deviation')
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    try:
        figure.savefig(out, dpi=110)
    except OSError as error:
        raise cannot_write(out, error) from error
