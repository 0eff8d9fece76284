"""Ablation: train and test one recipe with each of several blocks and seeds, and compare."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from mmengine.config import Config

from mmattn.config.index import find_config
from mmattn.config.load import load_config, parse_options
from mmattn.engine.hardware import hardware
from mmattn.errors import MmattnError, UsageError
from mmattn.files import check_writable

from .ablation_plot import plot_pareto
from .ablation_results import BlockResult, conclusion, default_metric, results_table, summarise
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
        out_dir: folder for the work dirs, `results.md`, `results.json` and `pareto.png`.
        jobs: number of runs at a time.
        threads: CPU threads of each run; None to share the cores.
        metric: metric of the test; None for mask AP, box AP or mIoU, whichever is measured.
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
    """
    names = list(dict.fromkeys([PLAIN, *attention]))
    if seeds < 1 or jobs < 1:
        raise UsageError(f'--seeds {seeds} --jobs {jobs}: allowed are numbers from 1.')
    for name in names:
        load_config(config, parse_options(options), attention=name.replace('+', ','))
    out_dir = Path(out_dir)
    check_writable(out_dir, '--out-dir')
    _check_recipe(config, options, out_dir)
    # all blocks of a seed before the next seed, so that first results come early
    runs = [
        Run(name, seed, out_dir / name / f'seed{seed}') for seed in range(seeds) for name in names
    ]
    missing = [run for run in runs if run.metrics() is None]
    log(f'{len(runs)} runs, {len(runs) - len(missing)} of them done before')
    threads = threads or max(1, (os.cpu_count() or 1) // jobs)
    start = make_scheduler(scheduler, scheduler_options, threads)
    command = partial(run_command, config, options or [])
    iterations = _iterations(load_config(config, parse_options(options)))
    # first, so that a block that does not fit its place is refused before hours of training
    log(f'costs of {", ".join(names)}: counted and timed')
    costs = _measure_costs(config, names, options, out_dir)
    failed = _run_all(missing, command, start, jobs, iterations, log)
    results = summarise(runs, metric, costs)
    _write_results(results, failed, config, options, out_dir, metric or default_metric(runs))
    if failed:
        reasons = [f'{run}: {reason}' for run, reason in failed.items()]
        raise RunsFailed(f'{len(failed)} of {len(runs)} runs failed, the others are done:', reasons)
    return results


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
        for process in running.values():  # interrupted
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
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
    config: str | Path, names: list[str], options: list[str] | None, out_dir: Path
) -> dict[str, dict]:
    """Name -> cost for one image, cached in `costs.json`; all are timed together, alternating."""
    path = out_dir / 'costs.json'
    costs = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    if set(names) <= set(costs):
        return costs
    for name in names:
        if name not in costs:
            cost = measure_cost(
                config, attention=name.replace('+', ','), latency=False, options=options
            )
            total, size = cost.rows[0], list(cost.size)
            costs[name] = dict(parameters=total.parameters, macs=total.macs, size=size)
    for name, ms in latencies(config, costs, options=options).items():
        costs[name]['ms'] = ms
    path.write_text(json.dumps(costs, indent=1), encoding='utf-8')
    return costs


def _write_results(
    results: list[BlockResult],
    failed: dict[Run, str],
    config: str | Path,
    options: list[str] | None,
    out_dir: Path,
    metric: str,
) -> None:
    if not results:
        return
    sentence = conclusion(results, metric)
    setting = f'{Path(config).stem}, the last checkpoint of each run, on {hardware()}.'
    if options:
        setting += f' With `--cfg-options {" ".join(options)}`.'
    failures = [f'Failed: {run}: {reason}' for run, reason in failed.items()]
    lines = [f'# {Path(config).stem}', '', *results_table(results, metric), '']
    lines += [sentence, setting, *failures]
    (out_dir / 'results.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    content = dict(
        config=find_config(config).name, metric=metric, options=options or [], sentence=sentence,
        results=[asdict(result) for result in results],
        failed={str(run): reason for run, reason in failed.items()},
    )  # fmt: skip
    (out_dir / 'results.json').write_text(json.dumps(content, indent=1), encoding='utf-8')
    plot_pareto(results, metric, Path(config).stem, out_dir / 'pareto.png')
