"""The measured figures of several models, class by class, as one picture."""

from pathlib import Path

import yaml

from mmattn.errors import UsageError, WriteError

_MARKS = 'osD^vP*X<>'


def plot_classes(names: list[str], out: str | Path, metafile: str | Path) -> None:
    """Draw what a metafile says was measured: `IoU.<class>` or `AP.<class>`, a mark a model.

    Classes stand in the order of the first model's figures, the largest first.

    Args:
        names: of rows of the metafile, two to ten, measured on the same data.
        out: the picture.
        metafile: configs/metafile.yml.

    Raises:
        UsageError: no such row, or no figures per class in it, or of other data than the first.
        WriteError: the picture cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    if not 2 <= len(names) <= len(_MARKS):
        raise UsageError(f'{len(names)} models, allowed 2 to {len(_MARKS)}.')
    rows = [_measured(name, metafile) for name in names]
    dataset, kind, first = rows[0][:3]
    order = sorted(first, key=first.get, reverse=True)
    for name, (data, _, values, _) in zip(names, rows, strict=True):
        if data != dataset or set(values) != set(order):
            raise UsageError(f'{name} was measured on {data}, {names[0]} on {dataset}.')
    figure = Figure(figsize=(max(6, 0.8 * len(order) + 2), 4.5), layout='constrained')
    axes = figure.subplots()
    for index, (name, (_, _, values, mean)) in enumerate(zip(names, rows, strict=True)):
        shift = 0.6 * (index / (len(names) - 1) - 0.5)  # side by side, so that none hides another
        places = [x + shift for x in range(len(order))]
        label = f'{name}, mean {mean:.2f}'
        axes.plot(places, [values[c] for c in order], _MARKS[index], markersize=6, label=label)
    for x in range(len(order) - 1):
        axes.axvline(x + 0.5, color='0.85', linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(order)), order, rotation=30, ha='right')
    axes.set(ylabel=f'{kind} (%)', ylim=(0, None), title=dataset)
    axes.grid(axis='y', alpha=0.3)
    axes.legend(fontsize='small')
    try:
        figure.savefig(out, dpi=120)
    except OSError as error:
        raise WriteError(f'cannot write {out}: {error.strerror}. Choose another --out.') from error


def _measured(name: str, metafile: str | Path) -> tuple[str, str, dict[str, float], float]:
    """Data set, kind of figure, class -> figure, and their mean as it was measured."""
    models = yaml.safe_load(Path(metafile).read_text(encoding='utf-8'))['Models']
    row = next((model for model in models if model['Name'] == name), None)
    if row is None:
        raise UsageError(f'{metafile} has no model {name}.')
    for result in row['Results']:
        for kind, mean in ('IoU', 'mIoU'), ('AP', 'box AP'):
            start, metrics = f'{kind}.', result['Metrics']
            values = {k.removeprefix(start): v for k, v in metrics.items() if k.startswith(start)}
            if values:
                return result['Dataset'], kind, values, metrics[mean]
    raise UsageError(f'{name}: {metafile} has no measured figures per class. Train and test it.')
