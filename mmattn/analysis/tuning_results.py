"""Results of a study: its trials, their table, the best command, and a picture."""

import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from mmattn.config.options import command_line, parse_options
from mmattn.errors import cannot_write
from mmattn.files import write_text_atomic

from .tuning_space import split_values

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_STATES = dict(COMPLETE='complete', PRUNED='stopped early', FAIL='failed', RUNNING='running')
_COLOURS = {'complete': '#0072B2', 'stopped early': '#999999'}
_BEST, _FAILED = '#D55E00', '#CC79A7'


@dataclass
class TrialResult:
    """A trial of a study.

    Attributes:
        number: K of its folder `trial_K`.
        state: 'complete', 'stopped early', 'failed' or 'running' (in another process).
        value: best value of the metric in its validations; None if there is none.
        step: iteration of that validation.
        values: key -> value, as on a command line.
        reason: why it failed; '' if it did not.
    """

    number: int
    state: str
    value: float | None
    step: int | None
    values: dict[str, str]
    reason: str = ''


def result_of(trial: 'FrozenTrial', maximise: bool) -> TrialResult:
    """The result of a trial of Optuna; AP stays a fraction."""
    best = None
    measured = {k: v for k, v in trial.intermediate_values.items() if math.isfinite(v)}
    if measured:
        best = (max if maximise else min)(measured, key=measured.get)
    values = {k: v if isinstance(v, str) else repr(v) for k, v in trial.params.items()}
    state, reason = _STATES.get(trial.state.name, 'running'), trial.user_attrs.get('reason', '')
    return TrialResult(trial.number, state, measured.get(best), best, values, reason)


def ranked(results: list[TrialResult], maximise: bool) -> list[TrialResult]:
    """Complete trials, best first; then those stopped early, then the others."""
    order = [*_STATES.values()]

    def rank(result: TrialResult) -> tuple:
        value = result.value if result.value is not None else -math.inf
        return order.index(result.state), -value if maximise else value, result.number

    return sorted(results, key=rank)


def results_table(results: list[TrialResult], metric: str) -> Iterator[str]:
    """Ranked results in Markdown; AP in percent."""
    keys = list(dict.fromkeys(key for result in results for key in result.values))
    unit, digits = _unit(metric)
    yield f'| trial | {metric} | at step | {" | ".join(keys)} | |'
    yield f'|---|---:|---:|{"---|" * len(keys)}---|'
    for result in results:
        value = '' if result.value is None else f'{unit * result.value:.{digits}f}'
        note = '' if result.state == 'complete' else result.state
        note += f': {result.reason}' if result.reason else ''
        shown = (_short(result.values.get(key, '')) for key in keys)
        cells = [f'trial_{result.number}', value, str(result.step or ''), *shown, note]
        yield f'| {" | ".join(cell.replace("|", "/") for cell in cells)} |'


def _unit(metric: str) -> tuple[int, int]:
    """Factor and number of digits: mmdet reports fractions, mmseg percent."""
    return (100, 2) if metric.startswith('coco/') else (1, 4 if 'loss' in metric else 2)


def _short(text: str) -> str:
    """A drawn number with four digits."""
    try:
        return text if text.lstrip('-').isdigit() else f'{float(text):.4g}'
    except ValueError:
        return text


def best_command(
    result: TrialResult,
    config: str | Path,
    attention: str | None,
    options: list[str],
    data: str | None = None,
) -> str:
    """The command that trains with the values of a trial, with paths as they were given."""
    changes, blocks = split_values(result.values, attention)
    words = ['mmattn', 'train', str(config), *(['--data', data] if data else [])]
    words += ['--attention', blocks] if blocks else []
    changed = parse_options([*options, *changes])
    return f'{shlex.join(words)}{" --cfg-options " if changed else ""}{command_line(changed)}'


def write_results(
    results: list[TrialResult], metric: str, maximise: bool, title: str, command: str, folder: Path
) -> str:
    """Write `results.md`, `results.json` and `trials.png`; returns the text of the first.

    Args:
        results: ranked results.
        metric: name of the metric.
        maximise: whether more is better.
        title: title of table and picture.
        command: command of the best trial; '' if none is complete.
        folder: folder for the files.

    Raises:
        WriteError: a file cannot be written.
    """
    lines = [f'# {title}', '', *results_table(results, metric), '']
    if command:
        lines += ['Training with the best values:', '', '```', command, '```']
    text = '\n'.join(lines) + '\n'
    content = dict(
        metric=metric, maximise=maximise, command=command, trials=[asdict(r) for r in results]
    )
    try:
        write_text_atomic(folder / 'results.md', text)
        write_text_atomic(folder / 'results.json', json.dumps(content, indent=1))
    except OSError as error:
        raise cannot_write(folder / 'results.md', error) from error
    plot_trials(results, metric, maximise, title, folder / 'trials.png')
    return text


def plot_trials(
    results: list[TrialResult], metric: str, maximise: bool, title: str, out: Path
) -> None:
    """Draw the metric of each trial, and the best so far.

    Args:
        results, metric, maximise, title: as for `write_results`.
        out: image file.

    Raises:
        WriteError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    unit, _ = _unit(metric)
    figure = Figure(figsize=(7, 4.4), layout='constrained')
    axes = figure.add_subplot()
    for state, colour in _COLOURS.items():
        shown = [r for r in results if r.state == state and r.value is not None]
        points = [(r.number, unit * r.value) for r in shown]
        if points:
            axes.scatter(*zip(*points), color=colour, label=state, zorder=2)
    complete = sorted((r.number, unit * r.value) for r in results if r.state == 'complete')
    best = list(accumulate((value for _, value in complete), max if maximise else min))
    if complete:
        axes.step([n for n, _ in complete], best, where='post', color=_BEST, label='best so far')
    for index, result in enumerate(r for r in results if r.state == 'failed'):
        label = 'failed' if index == 0 else None
        axes.axvline(result.number, color=_FAILED, linestyle=':', label=label, zorder=1)
    axes.set(xlabel='trial', ylabel=metric, title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    try:
        figure.savefig(out, dpi=110)
    except OSError as error:
        raise cannot_write(out, error) from error
