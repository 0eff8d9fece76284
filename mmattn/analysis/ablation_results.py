"""Results of an ablation: statistics over seeds, the table and the conclusion."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from scipy.stats import ttest_rel

from mmattn.errors import UsageError

from .ablation_run import PLAIN, Run

_SIGNIFICANCE = 0.05  # p below which a difference counts
_METRICS = ('coco/segm_mAP', 'coco/bbox_mAP', 'mIoU')  # the first one measured is the default


@dataclass
class BlockResult:
    """Metric of one block over the seeds, compared with the plain network.

    Attributes:
        attention: name of the block.
        values: seed -> metric.
        mean, std: mean and standard deviation (n - 1) over the seeds; std is None for one seed.
        difference: mean of the paired differences to 'none'; None for 'none' itself.
        p: two-sided p value of the paired t-test; None if there are fewer than two pairs.
        corrected: p after Holm's correction for all blocks compared.
        cost: `parameters`, `macs` and `ms` of the whole network for one image.
    """

    attention: str
    values: dict[int, float]
    mean: float
    std: float | None
    difference: float | None = None
    p: float | None = None
    corrected: float | None = None
    cost: dict[str, float] = field(default_factory=dict)


def summarise(
    runs: list[Run], metric: str | None = None, costs: dict[str, dict] | None = None
) -> list[BlockResult]:
    """Mean, standard deviation and difference to 'none' of every block with finished runs.

    Args:
        runs: runs, finished or not.
        metric: name of the metric; None for mask AP, box AP or mIoU, whichever was measured.
        costs: block -> its cost.

    Returns:
        'none' first, then the blocks by mean; AP in percent.

    Raises:
        UsageError: the metric was not measured.
    """
    measured = {run: metrics for run in runs if (metrics := run.metrics()) is not None}
    if not measured:
        return []
    metric = metric or default_metric(runs)
    for metrics in measured.values():
        if metric not in metrics:
            names = ', '.join(metrics)
            raise UsageError(f'--metric {metric} was not measured; there are: {names}.')
    unit = 100 if metric.startswith('coco/') else 1  # mmdet reports fractions, mmseg percent
    values: dict[str, dict[int, float]] = {}
    for run, metrics in measured.items():
        values.setdefault(run.attention, {})[run.seed] = unit * metrics[metric]
    plain = values.get(PLAIN, {})
    results = [_summarise_block(name, by_seed, plain) for name, by_seed in values.items()]
    tested = sorted((r for r in results if r.p is not None), key=lambda r: r.p)
    corrected = 0.0
    for index, result in enumerate(tested):  # Holm: the k-th smallest of n p values times n - k + 1
        corrected = max(corrected, min(1.0, result.p * (len(tested) - index)))
        result.corrected = corrected
    for result in results:
        result.cost = (costs or {}).get(result.attention, {})
    return sorted(results, key=lambda r: (r.attention != PLAIN, -r.mean))


def _summarise_block(name: str, values: dict[int, float], plain: dict[int, float]) -> BlockResult:
    count = len(values)
    mean = sum(values.values()) / count
    std = None
    if count > 1:
        std = (sum((v - mean) ** 2 for v in values.values()) / (count - 1)) ** 0.5
    result = BlockResult(name, values, mean, std)
    pairs = [(values[seed], plain[seed]) for seed in values if seed in plain]
    if name == PLAIN or not pairs:
        return result
    differences = [a - b for a, b in pairs]
    result.difference = sum(differences) / len(differences)
    if len(set(differences)) > 1:
        result.p = float(ttest_rel(*zip(*pairs, strict=True)).pvalue)
    return result


def default_metric(runs: list[Run]) -> str:
    """Mask AP, box AP or mIoU, whichever was measured; else the first metric; '' if none."""
    measured = next((metrics for run in runs if (metrics := run.metrics())), {})
    return next((name for name in _METRICS if name in measured), next(iter(measured), ''))


def conclusion(results: list[BlockResult], metric: str) -> str:
    """Which blocks differ from the plain network by more than chance, in a sentence."""
    compared = [r for r in results if r.attention != PLAIN]
    pairs = min((len(r.values) for r in results), default=0)
    if not compared:
        return 'Nothing was compared.'
    if all(r.p is None for r in compared):
        return f'With {pairs} seed nothing can be said about chance.'
    better = [r for r in compared if (r.corrected or 1) < _SIGNIFICANCE and r.difference > 0]
    worse = [r for r in compared if (r.corrected or 1) < _SIGNIFICANCE and r.difference < 0]
    test = (
        f'paired t-test over {pairs} seeds, Holm-corrected for {len(compared)} blocks, '
        f'p < {_SIGNIFICANCE}'
    )
    parts = []
    for word, blocks in ('more', better), ('less', worse):
        if blocks:
            names = ', '.join(f'{r.attention} ({r.difference:+.2f})' for r in blocks)
            parts.append(f'{names} gives {word} {metric} than the plain network ({test}).')
    if not parts:
        return f'No block differs from the plain network in {metric} by more than chance ({test}).'
    return ' '.join(parts)


def results_table(results: list[BlockResult], metric: str) -> Iterator[str]:
    """The results in Markdown."""
    yield (
        f'| attention | {metric}, mean ± std | seeds | difference | p | p, corrected | parameters '
        '| GMACs | ms |'
    )
    yield '|---|---:|---:|---:|---:|---:|---:|---:|---:|'
    for r in results:
        spread = '' if r.std is None else f' ± {r.std:.2f}'
        cells = [r.attention, f'{r.mean:.2f}{spread}', str(len(r.values))]
        cells.append('' if r.difference is None else f'{r.difference:+.2f}')
        cells += ['' if p is None else f'{p:.3f}' for p in (r.p, r.corrected)]
        if r.cost:
            cells += [f'{r.cost["parameters"]:,}', f'{r.cost["macs"] / 1e9:.2f}']
            cells.append(f'{r.cost["ms"]:.1f}' if r.cost.get('ms') else '')
        else:
            cells += ['', '', '']
        yield f'| {" | ".join(cells)} |'
