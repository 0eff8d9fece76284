"""Results of ablations: statistics over seeds, the file that tables are made from, the tables."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mmattn.errors import UsageError

from .ablation_run import PLAIN, Run
from .ablation_statistics import (
    POWER,
    SIGNIFICANCE,
    TEST_NAMES,
    TESTS,
    Difference,
    holm,
    mean_interval,
)

_METRICS = ('coco/segm_mAP', 'coco/bbox_mAP', 'mIoU')  # the first one measured is the default
_IN_PERCENT = ('coco/', 'mIoU', 'mAcc', 'aAcc', 'mDice', 'mFscore')


@dataclass
class BlockResult:
    """Metric of one block over the seeds, compared with the plain network.

    Attributes:
        attention: name of the block.
        values: seed -> metric.
        mean, std: mean and standard deviation (n - 1) over the seeds; std is None for one seed.
        interval: 95 % confidence interval of the mean; None for one seed.
        paired: difference to 'none' with the same seed; None for 'none' itself.
        welch: difference to 'none' of the means of all seeds; None for 'none' itself.
        test: which of these two decides.
        corrected: p value of that test after Holm's correction, see `correct`.
        detectable: smallest true difference that would have been seen, see `correct`.
        cost: `parameters`, `macs` and `ms` of the whole network for one image.
    """

    attention: str
    values: dict[int, float]
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    paired: Difference | None = None
    welch: Difference | None = None
    test: str = 'paired'
    corrected: float | None = None
    detectable: float | None = None
    cost: dict[str, float] = field(default_factory=dict)

    @property
    def difference(self) -> Difference | None:
        """The difference to 'none' by the test that decides."""
        return getattr(self, self.test)

    @property
    def seen(self) -> bool:
        """Whether the difference to 'none' is more than chance."""
        return self.corrected is not None and self.corrected < SIGNIFICANCE


@dataclass
class Ablation:
    """The results of one config.

    Attributes:
        config: file name of the config.
        metric: name of the metric; AP is in percent.
        results: a result for each block, 'none' first.
        options: changes to the config, `key=value`.
        hardware: description of the machines; '' if the tests recorded none.
        failed: run -> reason, of runs that failed.
        baseline: the row that the others are compared with.
    """

    config: str
    metric: str
    results: list[BlockResult]
    options: list[str] = field(default_factory=list)
    hardware: str = ''
    failed: dict[str, str] = field(default_factory=dict)
    baseline: str = PLAIN

    @property
    def title(self) -> str:
        return Path(self.config).stem

    def to_json(self) -> str:
        """The text of `results.json`, which `read_ablation` reads."""
        return json.dumps(dict(asdict(self), sentence=conclusion(self)), indent=1)


def summarise(
    runs: list[Run],
    metric: str | None = None,
    costs: dict[str, dict] | None = None,
    test: str = 'paired',
) -> list[BlockResult]:
    """Mean, deviation, interval and difference to 'none' of every block with finished runs.

    Args:
        runs: runs, finished or not.
        metric: name of the metric; None for mask AP, box AP or mIoU, whichever was measured.
        costs: block -> its cost.
        test: the test that decides, see `compare_blocks`.

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
    return compare_blocks(values, costs, test)


def compare_blocks(
    values: dict[str, dict[int, float]],
    costs: dict[str, dict] | None = None,
    test: str = 'paired',
    baseline: str = PLAIN,
) -> list[BlockResult]:
    """Compare every block with the plain network.

    Args:
        values: block -> seed -> metric.
        costs: block -> its cost.
        test: the test that decides; 'paired' compares runs of the same seed, 'welch' the means.
        baseline: the row to compare with.

    Returns:
        the baseline first, then the blocks by mean; corrected for their number.
    """
    plain, results = values.get(baseline, {}), []
    for name, by_seed in values.items():
        row = [*by_seed.values()]
        std = stdev(row) if len(row) > 1 else None
        result = BlockResult(name, by_seed, mean(row), std, mean_interval(row))
        result.test, result.cost = test, (costs or {}).get(name, {})
        pairs = [(by_seed[seed], plain[seed]) for seed in by_seed if seed in plain]
        if name != baseline and pairs:
            result.paired = TESTS['paired'](*zip(*pairs, strict=True))
        if name != baseline and plain:
            result.welch = TESTS['welch'](row, [*plain.values()])
        results.append(result)
    correct(results)
    return sorted(results, key=lambda r: (r.attention != baseline, -r.mean))


def correct(results: list[BlockResult]) -> None:
    """Correct p values, and the effects that would have been seen, for all these comparisons."""
    tested = [r for r in results if r.difference is not None and r.difference.p is not None]
    for result, p in zip(tested, holm([r.difference.p for r in tested])):
        result.corrected = p
        result.detectable = result.difference.detectable(len(tested))


def default_metric(runs: list[Run]) -> str:
    """Mask AP, box AP or mIoU, whichever was measured; else the first metric; '' if none."""
    measured = next((metrics for run in runs if (metrics := run.metrics())), {})
    return next((name for name in _METRICS if name in measured), next(iter(measured), ''))


def read_ablation(path: str | Path, test: str | None = None) -> Ablation:
    """Read `results.json`; statistics are computed again from the values in it.

    Args:
        path: the file.
        test: the test that decides; None for the one in the file.

    Raises:
        UsageError: the file is missing or does not hold the results of an ablation.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        rows: list[dict[str, Any]] = content['results']
        values = {
            row['attention']: {int(seed): float(value) for seed, value in row['values'].items()}
            for row in rows
        }
        if not all(values.values()):
            raise ValueError('a block has no values')
        costs = {row['attention']: row.get('cost', {}) for row in rows}
        test = test or next((row['test'] for row in rows if 'test' in row), 'paired')
        return Ablation(
            content['config'], content['metric'], compare_blocks(values, costs, test),
            content.get('options', []), content.get('hardware', ''), content.get('failed', {}),
        )  # fmt: skip
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f'--table {path} cannot be read: {reason}.') from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f'{error} is missing' if isinstance(error, KeyError) else error
        raise UsageError(
            f'--table {path} does not hold the results of an ablation: {reason}. Name a '
            'results.json that this command wrote.'
        ) from error


def compare_configs(ablations: list[Ablation]) -> Ablation:
    """Compare the plain networks of several configs with that of the first.

    Raises:
        UsageError: the configs have different metrics, tests or options, or one has no plain runs.
    """
    first = ablations[0]
    plain = {}
    for ablation in ablations:
        result = next((r for r in ablation.results if r.attention == PLAIN), None)
        if result is None:
            raise UsageError(f'{ablation.title} has no runs of the plain network to compare.')
        plain[ablation.title] = result
        for name in 'metric', 'options':
            if getattr(ablation, name) != getattr(first, name):
                raise UsageError(
                    f'{first.title} and {ablation.title} cannot be compared: {name} is '
                    f'{getattr(first, name)} in one and {getattr(ablation, name)} in the other.'
                )
    values = {title: result.values for title, result in plain.items()}
    costs = {title: result.cost for title, result in plain.items()}
    machines = dict.fromkeys(ablation.hardware for ablation in ablations if ablation.hardware)
    return Ablation(
        f'{len(plain)} configs',
        first.metric,
        compare_blocks(values, costs, plain[first.title].test, first.title),
        first.options,
        '; '.join(machines),
        {f'{a.title}, {run}': reason for a in ablations for run, reason in a.failed.items()},
        first.title,
    )


# ---- texts -------------------------------------------------------------------------------------
def conclusion(ablation: Ablation) -> str:
    """Which blocks differ from the plain network by more than chance, and what could be seen."""
    compared = [r for r in ablation.results if r.difference is not None]
    if not compared:
        return 'Nothing was compared.'
    tested = [r for r in compared if r.corrected is not None]
    if not tested:
        seeds = min(len(r.values) for r in ablation.results)
        if seeds < 2:
            return f'With {seeds} seed nothing can be said about chance.'
        return 'The values have no spread, so nothing can be said about chance.'
    parts = []
    other = 'the plain network' if ablation.baseline == PLAIN else ablation.baseline
    for r in tested:
        if r.seen:
            value, word = r.difference.value, 'more' if r.difference.value > 0 else 'less'
            parts.append(
                f'{r.attention} gives {_amount(abs(value), ablation.metric)} {word} '
                f'{ablation.metric} than {other} (95 % interval '
                f'{_range(r.difference.interval, "+")}).'
            )
    unseen = [r for r in tested if not r.seen]
    if unseen:
        effect = _amount(max(r.detectable for r in unseen), ablation.metric)
        parts.append(
            f'{", ".join(r.attention for r in unseen)}: no difference seen; an effect of {effect} '
            'or more would have been seen.'
        )
    return f'{" ".join(parts)} {method(ablation.results)}'


def method(results: list[BlockResult]) -> str:
    """How differences were tested, in a sentence."""
    tested = [r for r in results if r.corrected is not None]
    counts = [len(r.values) for r in results]
    seeds = f'{min(counts)} to {max(counts)}' if min(counts) < max(counts) else str(counts[0])
    tests = TEST_NAMES[tested[0].test]
    return (
        f"({tests[0].upper()}{tests[1:]} over {seeds} seeds, p < {SIGNIFICANCE} after Holm's "
        f'correction for {len(tested)} comparisons; an effect that "would have been seen" is seen '
        f'by {POWER:.0%} of such runs.)'
    )


def report(ablations: list[Ablation]) -> str:
    """The results in Markdown: one table of a single config, or blocks over several configs."""
    if len(ablations) > 1:
        return '\n'.join([*combined_table(ablations), ''])
    (ablation,) = ablations
    machine = f', on {ablation.hardware}' if ablation.hardware else ''
    setting = f'{ablation.title}, the last checkpoint of each run{machine}.'
    if ablation.options:
        setting += f' With `--cfg-options {" ".join(ablation.options)}`.'
    failures = [f'Failed: {run}: {reason}' for run, reason in ablation.failed.items()]
    rows = 'attention' if ablation.baseline == PLAIN else 'config'
    table = results_table(ablation.results, ablation.metric, rows)
    lines = [f'# {ablation.title}', '', *table, '']
    return '\n'.join([*lines, conclusion(ablation), setting, *failures, ''])


def results_table(
    results: list[BlockResult], metric: str, rows: str = 'attention'
) -> Iterator[str]:
    """Results in Markdown: of the blocks of one config, or of several configs."""
    yield (
        f'| {rows} | {metric}, mean ± std | 95 % interval | seeds | difference | 95 % interval '
        '| p, paired | p, Welch | p, corrected | would be seen | parameters | GMACs | ms |'
    )
    yield '|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|'
    for r in results:
        spread = '' if r.std is None else f' ± {r.std:.2f}'
        cells = [r.attention, f'{r.mean:.2f}{spread}', _range(r.interval), str(len(r.values))]
        if r.difference is None:
            cells += [''] * 6
        else:
            cells += [f'{r.difference.value:+.2f}', _range(r.difference.interval, '+')]
            p_values = (r.paired and r.paired.p, r.welch.p, r.corrected)
            cells += ['' if p is None else f'{p:.3f}' for p in p_values]
            cells.append('' if r.detectable is None else f'{r.detectable:.2f}')
        if r.cost:
            cells += [f'{r.cost["parameters"]:,}', f'{r.cost["macs"] / 1e9:.2f}']
            cells.append(f'{r.cost["ms"]:.1f}' if r.cost.get('ms') else '')
        else:
            cells += [''] * 3
        yield f'| {" | ".join(cells)} |'


def combined_table(ablations: list[Ablation]) -> Iterator[str]:
    """Blocks over several configs in Markdown, corrected for all comparisons in the table.

    A cell is the difference to the plain network of the same config, with its 95 % interval; in
    bold where it is more than chance.

    Raises:
        UsageError: another test decides in one than in another.
    """
    everything = [r for ablation in ablations for r in ablation.results]
    if len({r.test for r in everything}) > 1:
        raise UsageError('--table: different tests decide in these files. Choose one with --test.')
    correct(everything)
    columns = [{r.attention: r for r in ablation.results} for ablation in ablations]
    blocks = list(dict.fromkeys(r.attention for r in everything if r.attention != PLAIN))

    def mean_difference(name: str) -> float:
        found = [c[name].difference.value for c in columns if name in c and c[name].difference]
        return sum(found) / len(found) if found else float('-inf')

    yield f'| attention | {" | ".join(_labels(ablations))} |'
    yield f'|---|{"---:|" * len(ablations)}'
    yield _row(PLAIN, (_plain_cell(column.get(PLAIN)) for column in columns))
    for name in sorted(blocks, key=mean_difference, reverse=True):
        yield _row(name, (_difference_cell(column.get(name)) for column in columns))
    effects = [[r.detectable for r in a.results if r.detectable is not None] for a in ablations]
    yield _row('would be seen', (f'{max(found):.2f}' if found else '' for found in effects))
    yield ''
    if any(r.corrected is not None for r in everything):
        yield (
            'Differences to the plain network with their 95 % intervals; in bold what is more than '
            f'chance. {method(everything)}'
        )
    yield from (
        f'Failed: {ablation.title}, {run}: {reason}'
        for ablation in ablations
        for run, reason in ablation.failed.items()
    )


def _labels(ablations: list[Ablation]) -> list[str]:
    """Heads of columns: config and metric, and the options of a config that is there twice."""
    titles = [ablation.title for ablation in ablations]
    return [
        ', '.join([a.title, *(a.options if titles.count(a.title) > 1 else []), a.metric])
        for a in ablations
    ]


def _row(name: str, cells: Iterator[str]) -> str:
    return f'| {" | ".join([name, *cells])} |'


def _plain_cell(result: BlockResult | None) -> str:
    if result is None:
        return ''
    return f'{result.mean:.2f}' + ('' if result.std is None else f' ± {result.std:.2f}')


def _difference_cell(result: BlockResult | None) -> str:
    if result is None or result.difference is None:
        return ''
    interval = _range(result.difference.interval, '+')
    text = f'{result.difference.value:+.2f}' + (f' ({interval})' if interval else '')
    return f'**{text}**' if result.seen else text


def _amount(value: float, metric: str) -> str:
    return f'{value:.2f} points' if metric.startswith(_IN_PERCENT) else f'{value:.2f}'


def _range(interval: tuple[float, float] | None, sign: str = '') -> str:
    return '' if interval is None else ' to '.join(f'{end:{sign}.2f}' for end in interval)
