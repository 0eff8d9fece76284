"""Ablation: train and test one recipe with each of several blocks and seeds, and compare."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmattn.config.index import find_config
from mmattn.config.load import load_config, parse_options
from mmattn.engine.signals import handle_signals
from mmattn.errors import MmattnError, UsageError, cannot_write
from mmattn.files import check_writable, write_text_atomic
from mmattn.ops.memory import free_memory

from .ablation_plot import plot_differences, plot_pareto
from .ablation_results import Ablation, BlockResult, default_metric, report, summarise
from .ablation_run import PLAIN, Run, failure_reason, run_command
from .cost import latencies, measure_cost
from .recipe import recipe_of
from .schedulers import Scheduler, make_scheduler

_PROGRESS_SECONDS = 60  # between lines about progress


class RunsFailed(MmattnError):
    """Some runs of an ablation failed; the results of the others are written."""


def ablate(
    config: str | Path,
    attention: list[str],
    seeds: int,
    *,
    out_dir: str | Path,
    jobs: int = 1,
    threads: int | None = None,
    metric: str | None = None,
    test: str = 'paired',
    scheduler: str = 'local',
    scheduler_options: str = '',
    options: list[str] | None = None,
    log: Callable[[str], None] = print,
) -> list[BlockResult]:
    """Train and test a config with each block and each seed, and compare with the plain network.

    A finished run is not repeated and an interrupted one is resumed, so calling this again, also
    with more blocks or seeds, does only what is missing. The last checkpoint is tested: choosing
    the best of several on the test data would bias the comparison.

    Args:
        config: config of a detector or segmentor; blocks are placed as in training.
        attention: names of blocks; 'se+gc' for both at once; 'none' is always added.
        seeds: number of seeds, from 0; the same for all blocks.
        out_dir: folder for the work dirs, `results.json`, and what `write_report` makes of it.
        jobs: number of runs at a time.
        threads: CPU threads of each run; None to share the cores.
        metric: metric of the test; None for mask AP, box AP or mIoU, whichever is measured.
        test: 'paired' or 'welch', the test that decides, see `compare_blocks`.
        scheduler: 'local'; 'slurm', with sbatch; 'ray', on the cluster that RAY_ADDRESS names.
        scheduler_options: options of sbatch, such as '--partition=gpu --gres=gpu:1'; resources of a
            Ray task, such as 'num_gpus=1'.
        options: changes to the config, `key=value`.
        log: called with a line of progress.

    Returns:
        a result for each block with at least one finished run, 'none' first.

    Raises:
        UsageError: a name or number is not allowed; the folder holds runs of another recipe.
        RunsFailed: some runs failed; raised after all others are finished and written.
        Terminated: SIGTERM; the runs have saved a checkpoint, from which the next call goes on.
    """
    if seeds < 1 or jobs < 1:
        raise UsageError(f'--seeds {seeds} --jobs {jobs}: allowed are numbers from 1.')
    names, out_dir = _names(attention), Path(out_dir)
    costs = _check(config, names, options, out_dir, log)
    # all blocks of a seed before the next seed, so that first results come early
    runs = [
        Run(name, seed, out_dir / name / f'seed{seed}') for seed in range(seeds) for name in names
    ]
    missing = [run for run in runs if run.metrics() is None]
    log(f'{len(runs)} runs, {len(runs) - len(missing)} of them done before')
    cores = len(os.sched_getaffinity(0))
    threads = threads or max(1, cores // jobs)
    start = make_scheduler(scheduler, scheduler_options, threads)
    command = partial(run_command, config, options or [])
    iterations = _iterations(load_config(config, parse_options(options)))
    if scheduler == 'local' and missing:
        log(_limits(jobs, threads, cores, costs))
    with handle_signals(training=False):
        failed = _run_all(missing, command, start, jobs, iterations, log)
    results = summarise(runs, metric, costs, test)
    if results:
        ablation = Ablation(
            find_config(config).name, metric or default_metric(runs), results, options or [],
            _hardware(runs), {str(run): reason for run, reason in failed.items()},
        )  # fmt: skip
        write_text_atomic(out_dir / 'results.json', ablation.to_json() + '\n')
        write_report([ablation], out_dir)
    if failed:
        reasons = [f'{run}: {reason}' for run, reason in failed.items()]
        raise RunsFailed(f'{len(failed)} of {len(runs)} runs failed, the others are done:', reasons)
    return results


def ablate_configs(
    out_dirs: dict[str, Path],
    attention: list[str],
    seeds: int,
    *,
    options: list[str] | None = None,
    log: Callable[[str], None] = print,
    **settings: Any,
) -> None:
    """`ablate` for several configs, one after another; all are checked before the first run.

    Args:
        out_dirs: config -> folder for its results.
        attention, seeds, options, log, settings: as in `ablate`.

    Raises:
        UsageError, RunsFailed, Terminated: see `ablate`.
    """
    for config, out_dir in out_dirs.items():
        _check(config, _names(attention), options, out_dir, log)
    failures = []
    for config, out_dir in out_dirs.items():
        if len(out_dirs) > 1:
            log(f'{config}: {out_dir}')
        try:
            ablate(config, attention, seeds, out_dir=out_dir, options=options, log=log, **settings)
        except RunsFailed as error:
            failures.append(error)
    if failures:
        lines = [line for error in failures for line in error.lines]
        raise RunsFailed(' '.join(str(error.args[0]) for error in failures), lines)


def _names(attention: list[str]) -> list[str]:
    return list(dict.fromkeys([PLAIN, *attention]))


def _check(
    config: str | Path,
    names: list[str],
    options: list[str] | None,
    out_dir: Path,
    log: Callable[[str], None],
) -> dict[str, dict]:
    """Refuse before hours of training what cannot run; returns the costs of the blocks."""
    for name in names:
        load_config(config, parse_options(options), attention=name.replace('+', ','))
    check_writable(out_dir, '--out-dir')
    _check_recipe(config, options, out_dir)
    return _measure_costs(config, names, options, out_dir, log)


def _run_all(
    missing: list[Run],
    command: Callable[[Run], str],
    start: Scheduler,
    jobs: int,
    iterations: int,
    log: Callable[[str], None],
) -> dict[Run, str]:
    """Run all, `jobs` at a time; returns the failed ones with the reasons."""
    waiting, running, failed = list(missing), {}, {}
    start_time = last_report = time.monotonic()
    finished = 0
    start_iteration = {run: run.iteration() for run in missing}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[run] = start(run, command(run))
                log(f'started {run}: {run.log}')
            time.sleep(0.2)
            for run, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                finished += 1
                if process.returncode or run.metrics() is None:
                    failed[run] = failure_reason(run, process.returncode)
                    log(f'failed {run}: {failed[run]}')
                else:
                    log(f'done {run}, {finished} of {len(missing)}')
            if running and time.monotonic() - last_report > _PROGRESS_SECONDS:
                last_report = time.monotonic()
                current = {run: min(run.iteration(), iterations) for run in running}
                share = finished + sum(
                    (step - start_iteration[run]) / iterations for run, step in current.items()
                )
                estimate = ''
                if share:
                    minutes = (last_report - start_time) / share * (len(missing) - share) / 60
                    estimate = f', about {minutes:.0f} min left'
                steps = '; '.join(
                    f'{run} at {step} of {iterations}' for run, step in current.items()
                )
                log(f'{finished} of {len(missing)} runs{estimate}: {steps}')
    finally:
        if running:
            log(f'stopping {len(running)} runs: a training saves a checkpoint first')
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
        for process in running.values():  # so that the next call does not find them at work
            process.wait()
    return failed


def _iterations(cfg: Config) -> int:
    loop = cfg.train_cfg
    return loop.get('max_iters') or loop.get('max_epochs') or 1


def _check_recipe(config: str | Path, options: list[str] | None, out_dir: Path) -> None:
    """Refuse a folder that holds runs of another recipe."""
    recipe, path = recipe_of(config, options), out_dir / 'recipe.json'
    if not path.is_file():
        path.write_text(json.dumps(recipe), encoding='utf-8')
    elif json.loads(path.read_text(encoding='utf-8')) != recipe:
        raise UsageError(
            f'{out_dir} holds runs of another recipe: config or --cfg-options differ. Choose '
            'another --out-dir.'
        )


def _measure_costs(
    config: str | Path,
    names: list[str],
    options: list[str] | None,
    out_dir: Path,
    log: Callable[[str], None] = print,
) -> dict[str, dict]:
    """Name -> cost for one image, cached in `costs.json`; all are timed together, alternating."""
    path = out_dir / 'costs.json'
    costs = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    if set(names) <= set(costs):
        return costs
    log(f'costs of {", ".join(names)}: counted and timed')
    for name in names:
        if name not in costs:
            cost = measure_cost(
                config, attention=name.replace('+', ','), latency=False, options=options
            )
            total, size = cost.rows[0], list(cost.size)
            costs[name] = dict(
                parameters=total.parameters, macs=total.macs, size=size, memory=cost.memory.total
            )
    for name, ms in latencies(config, costs, options=options).items():
        costs[name]['ms'] = ms
    path.write_text(json.dumps(costs, indent=1), encoding='utf-8')
    return costs


def _limits(jobs: int, threads: int, cores: int, costs: dict[str, dict]) -> str:
    """The share of cores and memory that the runs take, with a warning where it is too much."""
    text = f'{jobs} at a time, threads of each: {threads}, cores: {cores}'
    if jobs * threads > cores:
        text += f'. They slow each other down: --jobs times --threads is above {cores}'
    free = free_memory(torch.device('cpu'))
    needed = jobs * max((cost.get('memory', 0) for cost in costs.values()), default=0)
    if free is None or not needed:
        return text
    text += f'; memory for networks: {needed / 1e9:.1f} GB, free: {free / 1e9:.1f} GB'
    if needed > free:
        text += '. They may be killed: lower --jobs, or the batch size with --cfg-options'
    return text


def _hardware(runs: list[Run]) -> str:
    """The machines of the runs, as their tests recorded them."""
    records = [record for run in runs if (record := run.record()) is not None]
    return '; '.join(dict.fromkeys(r['hardware'] for r in records if 'hardware' in r))


def write_report(ablations: list[Ablation], out_dir: Path) -> str:
    """Write the tables and plots of results: `results.md`, `differences.png`, `pareto.png`.

    Args:
        ablations: the results; of several the table has a column for each, and there is no
            `pareto.png`.
        out_dir: folder for the files.

    Returns:
        the text of `results.md`.

    Raises:
        WriteError: a file cannot be written.
    """
    text = report(ablations)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        write_text_atomic(out_dir / 'results.md', text)
    except OSError as error:
        raise cannot_write(out_dir, error, 'Choose another --out-dir.') from error
    if len(ablations) == 1:
        plot_pareto(ablations[0], out_dir / 'pareto.png')
    plot_differences(ablations, out_dir / 'differences.png')
    return text
