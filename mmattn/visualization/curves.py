"""Training curves: losses and validation metric by iteration."""

import json
from pathlib import Path

_VALIDATION = 'val/'  # prefix of validation losses


def read_scalars(work_dir: str | Path) -> dict[str, dict[int, float]]:
    """name -> {iteration: value} from all logs of a run; later logs override earlier ones."""
    scalars: dict[str, dict[int, float]] = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        trained: dict = {}  # the last record of a training step
        for line in path.read_text(encoding='utf-8').splitlines():
            record = json.loads(line)
            step = record.get('iter', record.get('step'))
            if 'iter' in record:
                trained = record
            elif 'epoch' in trained and step <= trained['epoch']:  # a validation logged by epoch
                step = trained['iter']
            for name, value in record.items():
                if isinstance(value, int | float):
                    scalars.setdefault(name, {})[step] = value
    return scalars


def plot_curves(work_dir: str | Path, metric: str = 'mIoU') -> Path | None:
    """Draw `curves.png` into `work_dir` and return its path; None if nothing was logged yet.

    Training losses are lines; validation losses are broken lines with a point at each validation,
    in the colour of the same loss in training.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    scalars = read_scalars(work_dir)
    losses = {name: values for name, values in scalars.items() if 'loss' in name}
    if not losses and metric not in scalars:
        return None
    figure = Figure(figsize=(8, 6), layout='constrained')
    top, bottom = figure.subplots(2, 1, sharex=True)
    _plot_losses(top, losses)
    top.set(title=Path(work_dir).name)
    if metric in scalars:
        unit = 100 if metric.startswith('coco/') else 1  # COCO metrics are fractions
        values = {step: unit * value for step, value in scalars[metric].items()}
        bottom.plot(list(values), list(values.values()), marker='o', color='tab:green')
        for step, value in values.items():
            bottom.annotate(
                f'{value:.1f}', (step, value), (0, 6), textcoords='offset points', ha='center'
            )
        bottom.margins(y=0.2)
    bottom.set(xlabel='iteration', ylabel=f'validation {metric} (%)')
    for axes in top, bottom:
        axes.grid(alpha=0.3)
    out = Path(work_dir) / 'curves.png'
    figure.savefig(out, dpi=120)
    return out


def _plot_losses(axes, losses: dict[str, dict[int, float]]) -> None:
    names = sorted({name.removeprefix(_VALIDATION) for name in losses})
    for index, name in enumerate(names):
        colour = f'C{index}'
        if name in losses:
            values = losses[name]
            axes.plot(list(values), list(values.values()), label=name, linewidth=1, color=colour)
        if _VALIDATION + name in losses:
            values = losses[_VALIDATION + name]
            style = dict(linestyle='--', marker='o', markersize=4, color=colour)
            axes.plot(list(values), list(values.values()), label=_VALIDATION + name, **style)
    validated = any(name.startswith(_VALIDATION) for name in losses)
    axes.set(ylabel='loss' if validated else 'training loss', yscale='log')
    if losses:
        axes.legend(fontsize='small' if validated else None)
