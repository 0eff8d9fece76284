"""Run the benchmark: every block against its baselines, under several numbers of threads."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmattn.errors import UsageError
from mmattn.files import check_writable
from mmattn.progress import stages

from .cases import LAYOUTS, MEASURES, MODES, Case, Size, select_cases
from .compare import (
    MAX_SECONDS,
    QUICK_SECONDS,
    ROUNDS,
    TARGET_ROUNDS,
    Log,
    compare_case,
    measure_curve,
)
from .machine import describe_in_words, describe_machine, malloc_setting
from .plot import FORMATS, MAX_CURVES, plot_benchmark
from .report import LEGEND, curve_lines, deviations, summary, table_header, table_lines
from .results import Results
from .timing import CPU, DTYPES, ResultsDiffer, find_device, release_memory

# plotted by --plot without a pattern
_CURVES = ('NonLocal2d embedded_gaussian', 'CrissCrossAttention 1', 'APNB', 'ContextBlock')


def run_benchmark(
    pattern: str = '*',
    size: Size | None = None,
    rounds: int = ROUNDS,
    json_path: str | Path | None = None,
    *,
    device: str = 'cpu',
    dtype: str = 'fp32',
    threads: Sequence[int] | None = None,
    layouts: Iterable[str] = LAYOUTS,
    modes: Iterable[str] = MODES,
    plot_path: str | Path | None = None,
    resume: bool = False,
    against: str | Path | None = None,
) -> Results:
    """Measure cases and print a table; optionally write JSON and a plot.

    Args:
        pattern: glob pattern of case names, see `select_cases`.
        size: (N, C, H, W) for all cases; None for the size of each.
        rounds: number of rounds, see `compare_case`.
        json_path: JSON file for the figures, written after each case.
        device: 'cpu' or 'cuda', 'cuda:1', ..., without TF32.
        dtype: one of `DTYPES`.
        threads: numbers of threads, one after another; None for torch's own number, then 1.
        layouts, modes: some of `LAYOUTS` and `MODES`.
        plot_path: image of time and memory by size, see `plot_benchmark`.
        resume: whether to keep what the JSON file has, and to measure the rest.
        against: JSON file of an earlier run, whose ratios are compared.

    Raises:
        UsageError: a size or number is below 1; no such device; no name matches; figures to go on
            with are of other options or another machine.
        ResultsDiffer: results of a baseline differ; raised after all others were measured.
        WriteError: a file cannot be written.
    """
    own = torch.get_num_threads()
    threads = [own, 1][: 1 + (own > 1)] if threads is None else list(threads)
    if min(*(size or (1,)), rounds, *threads) < 1:
        raise UsageError(
            f'--size {size} --rounds {rounds} --threads {threads}: allowed are numbers from 1.'
        )
    torch_device, torch_dtype = find_device(device), DTYPES[dtype]
    cases = select_cases(pattern, size is not None, torch_device, torch_dtype)
    plotted = _plotted(cases, pattern, plot_path) if plot_path else []
    if plot_path:
        check_writable(Path(plot_path).parent, '--plot')
    options = dict(pattern=pattern, size=size, device=device, dtype=dtype, rounds=rounds)
    options |= dict(layouts=list(layouts), modes=list(modes))
    results = Results.open(json_path, options, resume)
    earlier = Results.load(against) if against else None
    if torch_device == CPU:
        # one compilation for all numbers of threads
        torch._inductor.config.cpp.dynamic_threads = True
    else:
        torch.cuda.set_device(torch_device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        threads = threads[:1]
    errors = []
    with stages() as log:
        if plotted:  # first, as the largest baselines need all the memory
            errors += _measure_curves(plotted, results, torch_device, torch_dtype, log, plot_path)
        print(LEGEND)
        for number in threads:
            torch.set_num_threads(number)
            measured = functools.partial(
                compare_case, device=torch_device, dtype=torch_dtype, rounds=rounds
            )
            measured = functools.partial(measured, layouts=layouts, modes=modes)
            errors += _measure_cases(cases, results, measured, number == own, log)
    torch.set_num_threads(own)
    print(*summary(results.rows), *(f'not timed: {error}' for error in errors), sep='\n')
    if earlier:
        print(*deviations(results, earlier), sep='\n')
    if errors:
        raise errors[0]
    return results


def _measure_cases(
    cases: list[Case], results: Results, compare: Any, own_threads: bool, log: Log
) -> list[ResultsDiffer]:
    """Measure cases under the present number of threads, and print a table."""
    options, errors = results.options, []
    size, threads, malloc = options['size'], torch.get_num_threads(), malloc_setting()
    device, dtype = find_device(options['device']), DTYPES[options['dtype']]
    log('the machine')
    machine = describe_machine(device, dtype)
    log('')
    results.add_machine(machine)
    print(f'\n{describe_in_words(machine)}')
    has_targets = own_threads and malloc == 'tuned' and size is None
    fewer = f'fewer if all take over {MAX_SECONDS if has_targets else QUICK_SECONDS} s'
    fewer += f', but {TARGET_ROUNDS} for a target' if has_targets else ''
    print(f'{options["device"]}, {options["dtype"]}, {options["rounds"]} rounds; {fewer}')
    print(table_header(), flush=True)
    for index, case in enumerate(cases, 1):
        run_size = tuple(size or case.size)
        row = results.find((case.name, run_size, threads, malloc))
        if row is None:
            release_memory()
            torch.compiler.reset()
            known = results.has_memory(case.name, run_size)
            try:
                row = compare(
                    case,
                    size,
                    machine=machine,
                    measures=[m for m in MEASURES if not (known and m in ('saved', 'peak'))],
                    has_targets=has_targets,
                    log=functools.partial(_log_numbered, log, f'{index} of {len(cases)}'),
                )
            except ResultsDiffer as error:
                errors.append(error)
                continue
            finally:
                log('')
            results.rows.append(row)
            results.save()
        print(*table_lines(row), sep='\n', flush=True)
    return errors


def _measure_curves(
    cases: list[Case],
    results: Results,
    device: torch.device,
    dtype: torch.dtype,
    log: Log,
    path: str | Path,
) -> list[ResultsDiffer]:
    """Measure and draw curves."""
    errors = []
    for case in cases:
        if any(curve.name == case.name for curve in results.curves):
            continue
        try:
            curve = measure_curve(case, results.options['size'] or case.size, device, dtype, log)
        except ResultsDiffer as error:
            errors.append(error)
            continue
        log('')
        results.curves.append(curve)
        print(*curve_lines(curve), sep='\n', flush=True)
        results.save()
    if results.curves:
        plot_benchmark(results.curves, _title(describe_machine(device, dtype), dtype), path)
    return errors


def _log_numbered(log: Log, number: str, text: str) -> None:
    log(f'[{number}] {text}')


def _title(machine: dict, dtype: torch.dtype) -> str:
    threads = f'{machine["threads"]} thread{"s" * (machine["threads"] > 1)}'
    name = f'GPU {machine["gpu"]}' if 'gpu' in machine else f'CPU {machine["cpu"]}, {threads}'
    kind = next(name for name, value in DTYPES.items() if value == dtype)
    return f'{name}, {kind}, malloc {machine["malloc"]}, torch {machine["torch"]}'


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
