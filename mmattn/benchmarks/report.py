"""Run the benchmark: a table, a JSON file and a plot of every block against its baselines."""

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from mmattn.errors import UsageError
from mmattn.files import check_writable
from mmattn.progress import stages

from .cases import MEASURES, Case, Size, select_cases
from .compare import (
    CURVE,
    MAX_POINT_SECONDS,
    MAX_SECONDS,
    Comparison,
    Curve,
    Log,
    compare_case,
    format_size,
    measure_curve,
)
from .plot import FORMATS, MAX_CURVES, plot_benchmark
from .timing import CPU, DTYPES, ResultsDiffer, describe_machine, find_device, release_memory

# plotted by --plot without a pattern
_CURVES = ('NonLocal2d embedded_gaussian', 'CrissCrossAttention 1', 'APNB', 'ContextBlock')
_HEADINGS = dict(forward='fwd ms', step='step ms', saved='saved MB', peak='peak MB')
_UNITS = dict(forward=1, step=1, saved=1e6, peak=1e6)


def run_benchmark(
    pattern: str = '*',
    size: Size | None = None,
    rounds: int = 7,
    json_path: str | Path | None = None,
    *,
    device: str = 'cpu',
    dtype: str = 'fp32',
    plot_path: str | Path | None = None,
) -> list[Comparison]:
    """Measure cases and print a line for each baseline; optionally write JSON and a plot.

    Args:
        pattern: glob pattern of case names, see `select_cases`.
        size: (N, C, H, W) for all cases; None for the size of each.
        rounds: number of rounds, see `compare_case`.
        json_path: JSON file for the figures.
        device: 'cpu', with one thread, or 'cuda', 'cuda:1', ..., without TF32.
        dtype: one of `DTYPES`.
        plot_path: image of time and memory by size, see `plot_benchmark`.

    Raises:
        UsageError: a size or number of rounds is below 1; no such device; no name matches.
        ResultsDiffer: results of a baseline differ; raised after all others were measured.
        WriteError: a file cannot be written.
    """
    if min(*(size or (1,)), rounds) < 1:
        raise UsageError(f'--size {size} --rounds {rounds}: allowed are numbers from 1.')
    torch_device, torch_dtype = find_device(device), DTYPES[dtype]
    cases = select_cases(pattern, size is not None, torch_device, torch_dtype)
    plotted = _plotted(cases, pattern, plot_path) if plot_path else []
    for path, flag in (json_path, '--json'), (plot_path, '--plot'):
        if path:
            check_writable(Path(path).parent, flag)
    torch.set_num_threads(1)
    if torch_device != CPU:
        torch.cuda.set_device(torch_device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    machine = describe_machine(torch_device, torch_dtype)
    print(', '.join(f'{key} {value}' for key, value in machine.items()))
    print(f'{device}, {dtype}, best of {rounds} rounds, fewer if they take over {MAX_SECONDS} s')
    print('x: baseline over ours, targets below; bound: lower bound of the forward pass')
    comparisons, curves, errors, last_size = [], [], [], None

    def save() -> None:
        """Write intermediate results: a baseline may need so much memory that it is killed."""
        if json_path:
            content = dict(machine=machine, device=device, dtype=dtype, size=size, rounds=rounds)
            content['rows'] = [asdict(comparison) for comparison in comparisons]
            content['curves'] = [asdict(curve) for curve in curves]
            Path(json_path).write_text(json.dumps(content, indent=1), encoding='utf-8')

    with stages() as log:
        for case in plotted:  # first, as the largest baselines need all the memory
            try:
                curve_size = size or case.size
                curve = measure_curve(case, curve_size, torch_device, torch_dtype, log)
            except ResultsDiffer as error:
                errors.append(error)
                continue
            log('')
            curves.append(curve)
            print(*curve_lines(curve), sep='\n')
            save()
        if curves:
            plot_benchmark(curves, _title(machine, torch_device, dtype), plot_path)
        print(_table_header())
        for index, case in enumerate(cases, 1):
            log_case = functools.partial(_log_numbered, log, f'{index} of {len(cases)}')
            release_memory()
            try:
                results = compare_case(
                    case, size, torch_device, torch_dtype, rounds, machine, log_case
                )
            except ResultsDiffer as error:
                errors.append(error)
                results = []
            log('')
            if results and results[0].size != last_size:
                last_size = results[0].size
                print(format_size(last_size))
            for comparison in results:
                print(*table_lines(comparison), sep='\n')
            comparisons += results
            save()
        print(*summary(comparisons), *(f'not timed: {error}' for error in errors), sep='\n')
    if errors:
        raise errors[0]
    return comparisons


def _table_header() -> str:
    columns = ''.join(f'{name:>9}{"x":>7}' for name in _HEADINGS.values())
    bounds = f'{"bound ms":>9}{"ours/":>7}{"base/":>7}'
    return f'{"block":<37}{"baseline":<9}{columns}{bounds}{"rounds":>7}'


def _title(machine: dict, device: torch.device, dtype: str) -> str:
    cpu = f'CPU {machine["cpu"]}, {machine["threads"]} thread'
    name = cpu if device == CPU else f'GPU {machine["gpu"]}'
    return f'{name}, {dtype}, malloc {machine["malloc"]}, torch {machine["torch"]}'


def _plotted(cases: list[Case], pattern: str, path: str | Path) -> list[Case]:
    """The cases to plot: those of the pattern, or without one four representative ones."""
    if Path(path).suffix.lower() not in FORMATS:
        raise UsageError(f'--plot {path}: allowed are names that end in {", ".join(FORMATS)}.')
    plotted = [case for case in cases if not case.fixed_size]
    if pattern == '*':
        plotted = [case for case in plotted if case.name in _CURVES]
    if not 1 <= len(plotted) <= MAX_CURVES:
        count = len(plotted)
        raise UsageError(f'--plot: {count} blocks fit the pattern, allowed 1 to {MAX_CURVES}.')
    return plotted


def _log_numbered(log: Log, number: str, text: str) -> None:
    log(f'[{number}] {text}')


def table_lines(comparison: Comparison) -> Iterator[str]:
    """A line of the table; then targets below the ratios, and why a baseline has no figure."""
    pairs = [
        (comparison.ours[measure], comparison.theirs[measure], _UNITS[measure])
        for measure in MEASURES
    ]
    cells = ''.join(
        cell((ours and ours / u, theirs and theirs / u), 9, 7) for ours, theirs, u in pairs
    )
    bound_ratios = [
        t['forward'] / comparison.lower_bound if t['forward'] and comparison.lower_bound else None
        for t in (comparison.ours, comparison.theirs)
    ]
    bounds = f'{_number(comparison.lower_bound):>9}'
    bounds += ''.join(f'{_number(ratio):>7}' for ratio in bound_ratios)
    rounds = '/'.join(map(str, comparison.rounds.values()))
    yield f'{comparison.name:<37}{comparison.baseline:<9}{cells}{bounds}{rounds:>7}'.rstrip()
    if comparison.targets:
        cells = ''.join(
            f'{_target(comparison, measure):>16}' for measure in (*MEASURES, 'lower_bound')
        )
        yield f'{"  target":<46}{cells}'.rstrip()
    for reason in dict.fromkeys(comparison.unsupported.values()):
        measures = ', '.join(
            measure for measure, why in comparison.unsupported.items() if why == reason
        )
        yield f'  {comparison.baseline} cannot ({measures}): {reason}'


def summary(comparisons: list[Comparison]) -> Iterator[str]:
    """How many targets were met, and which were not."""
    targets = [
        (comparison, measure) for comparison in comparisons for measure in comparison.targets
    ]
    missed = [
        (comparison, measure) for comparison, measure in targets if not comparison.met(measure)
    ]
    if targets:
        yield f'{len(targets) - len(missed)} of {len(targets)} targets met'
    for comparison, measure in missed:
        ratio, target = _number(comparison.ratio(measure)), _target(comparison, measure)
        yield f'  missed: {comparison.name} {measure} {ratio}, target {target}'


def _target(comparison: Comparison, measure: str) -> str:
    if measure not in comparison.targets:
        return ''
    sign = '<=' if measure == 'lower_bound' else '>='
    return f'{sign}{comparison.targets[measure]:.3g} {"ok" if comparison.met(measure) else "no"}'


def curve_lines(curve: Curve) -> Iterator[str]:
    """The points of a curve as a table, and why one ends before the largest size."""
    sides = dict(ours=curve.ours) | {curve.baseline: curve.theirs}
    headings = ''.join(f'{name + " step ms":>18}{"saved MB":>10}' for name in sides)
    yield f'{curve.name + " by pixels":<46}{headings}'
    for pixels in (h * w for h, w in CURVE):
        points = (
            side[measure].get(pixels) for side in sides.values() for measure in ('step', 'saved')
        )
        values = (point and point / unit for point, unit in zip(points, 2 * (1, 1e6), strict=True))
        yield f'{pixels:>46}{{:>18}}{{:>10}}{{:>18}}{{:>10}}'.format(*map(_number, values))
    for measure, (pixels, reason) in curve.refused.items():
        yield f'  {curve.baseline} cannot ({measure}) from {pixels} on: {reason}'
    for name, side in sides.items():
        for measure, points in side.items():
            refused = name == curve.baseline and measure in curve.refused
            if len(points) < len(CURVE) and not refused:
                last = max(points)
                yield f'  {name} ({measure}) ends at {last}, which took over {MAX_POINT_SECONDS} s'


def cell(pair: tuple[float | None, float | None], width: int = 12, ratio_width: int = 7) -> str:
    """Our figure, and the ratio of the baseline's to it."""
    ours, theirs = pair
    ratio = f'{theirs / ours:.2f}' if theirs and ours else '-'
    return f'{_number(ours):>{width}}{ratio:>{ratio_width}}'


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.1f}' if value >= 10 else f'{value:.2f}'
