"""Plot of measured IoU or AP per class for several models."""

from pathlib import Path

import yaml

from mmattn.errors import UsageError, cannot_write

_MARKERS = 'osD^vP*X<>'


def plot_classes(names: list[str], out: str | Path, metafile: str | Path) -> None:
    """Plot the metrics `IoU.<class>` or `AP.<class>` of models in a metafile, one marker a model.

    Classes are sorted by the values of the first model, the largest first.

    Args:
        names: names of two to ten models in the metafile, measured on the same data.
        out: path of the picture.
        metafile: path of configs/metafile.yml.

    Raises:
        UsageError: no such model, no metrics per class, or other data than those of the first.
        WriteError: the picture cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    if not 2 <= len(names) <= len(_MARKERS):
        raise UsageError(f'{len(names)} models, allowed 2 to {len(_MARKERS)}.')
    results = [_class_metrics(name, metafile) for name in names]
    dataset, metric, first = results[0][:3]
    order = sorted(first, key=first.get, reverse=True)
    for name, (data, _, values, _) in zip(names, results, strict=True):
        if data != dataset or set(values) != set(order):
            raise UsageError(f'{name} was measured on {data}, {names[0]} on {dataset}.')
    figure = Figure(figsize=(max(6, 0.8 * len(order) + 2), 4.5), layout='constrained')
    axes = figure.subplots()
    for index, (name, (_, _, values, mean)) in enumerate(zip(names, results, strict=True)):
        shift = 0.6 * (index / (len(names) - 1) - 0.5)  # so that no marker hides another
        places = [x + shift for x in range(len(order))]
        label = f'{name}, mean {mean:.2f}'
        axes.plot(places, [values[c] for c in order], _MARKERS[index], markersize=6, label=label)
    for x in range(len(order) - 1):
        axes.axvline(x + 0.5, color='0.85', linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(order)), order, rotation=30, ha='right')
    axes.set(ylabel=f'{metric} (%)', ylim=(0, None), title=dataset)
    axes.grid(axis='y', alpha=0.3)
    axes.legend(fontsize='small')
    try:
        figure.savefig(out, dpi=120)
    except OSError as error:
        raise cannot_write(out, error, 'Choose another --out.') from error


def _class_metrics(name: str, metafile: str | Path) -> tuple[str, str, dict[str, float], float]:
    """Data set, 'IoU' or 'AP', class -> value, and the measured mean."""
    models = yaml.safe_load(Path(metafile).read_text(encoding='utf-8'))['Models']
    model = next((model for model in models if model['Name'] == name), None)
    if model is None:
        raise UsageError(f'{metafile} has no model {name}.')
    for result in model['Results']:
        for metric, mean in ('IoU', 'mIoU'), ('AP', 'box AP'):
            prefix, metrics = f'{metric}.', result['Metrics']
            values = {
                key.removeprefix(prefix): value
                for key, value in metrics.items()
                if key.startswith(prefix)
            }
            if values:
                return result['Dataset'], metric, values, metrics[mean]
    raise UsageError(f'{name}: {metafile} has no measured figures per class. Train and test it.')
