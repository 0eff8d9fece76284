"""The context probe: what each block can do, seen on tasks that need one ability each."""

import fnmatch
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from mmattn.errors import MemoryShortage, UsageError
from mmattn.files import check_writable
from mmattn.progress import track
from mmattn.text import nearest

from .probe_network import BATCH, STEPS, WIDTH, Cell, measure, refusal, rows
from .probe_plot import plot_probe
from .probe_results import ProbeResults, compare, conclusions, remarks, table
from .probe_tasks import SIZE, TASKS

Unit = tuple[str, str, int]  # block, task, seed


def run_probe(
    blocks: Sequence[str] = ('*',),
    tasks: Sequence[str] = ('*',),
    seeds: Iterable[int] = range(5),
    *,
    jobs: int = 1,
    steps: int = STEPS,
    json_path: str | Path | None = None,
    resume: bool = False,
    against: str | Path | None = None,
    plot_path: str | Path | None = None,
) -> ProbeResults:
    """Train a tiny network with each block on each task, and print a table of accuracies.

    A cell, i.e. a block, a task and a seed, has the same result in any order and any process. One
    seed of all blocks and tasks is measured before the next, so that first results come early.

    Args:
        blocks: glob patterns of rows of the table, see `probe_network.rows`.
        tasks: glob patterns of tasks, see `TASKS`.
        seeds: numbers of the seeds.
        jobs: number of processes, each with one thread. A block that a script registers is known
            to the script's own process alone, so needs 1.
        steps: training steps of a cell.
        json_path: JSON file for the results, written after each cell.
        resume: whether to keep what the JSON file has, and to measure the rest.
        against: JSON file whose cells must be equal, bit for bit.
        plot_path: image of the table as a heat map.

    Raises:
        UsageError: no name matches; a number is below 1; results to go on with are of other
            options.
        CellsDiffer: cells are not equal to those of `against`; raised after the table is printed.
        WriteError: a file cannot be written.
        MemoryShortage: a process was killed.
    """
    seeds = list(seeds)
    if min(jobs, steps, len(seeds)) < 1 or min(seeds) < 0:
        raise UsageError(
            f'--jobs {jobs} --steps {steps} with {len(seeds)} seeds: allowed are numbers from 1, '
            'seeds from 0.'
        )
    chosen_tasks = _matching(tasks, list(TASKS), '--tasks')
    chosen_blocks = _matching(blocks, list(rows()), '--blocks')
    if plot_path:
        check_writable(Path(plot_path).parent, '--plot')
    options = dict(size=SIZE, width=WIDTH, batch=BATCH, steps=steps, torch=torch.__version__)
    results = ProbeResults.open(json_path, options, resume)
    other = None
    if against:
        other = ProbeResults.load(against)
        other.check_options(options, 'Give the same options.')
    refused = {block: reason for block in chosen_blocks if (reason := refusal(block))}
    results.left_out |= refused
    units = [
        (block, task, seed)
        for seed in seeds
        for task in chosen_tasks
        for block in chosen_blocks
        if block not in refused
    ]
    missing = [unit for unit in units if unit not in results.cells]
    if missing:
        for cell in track(_measured(missing, steps, jobs), total=len(missing), title='cells'):
            results.add(cell)
    print(*table(results), '', *conclusions(results), *remarks(results), sep='\n', flush=True)
    if plot_path:
        plot_probe(results, plot_path)
    if other:
        print(compare(results, other))
    return results


def _matching(patterns: Sequence[str], names: list[str], flag: str) -> list[str]:
    """The names that fit a pattern, in their order; case does not matter.

    Raises:
        UsageError: a pattern fits none.
    """
    chosen = set()
    for pattern in patterns:
        fits = {name for name in names if fnmatch.fnmatch(name.lower(), pattern.lower())}
        if not fits:
            raise UsageError(
                f'{flag} {pattern!r} fits no name.{nearest(pattern, names)} There are: '
                f'{", ".join(names)}.'
            )
        chosen |= fits
    return [name for name in names if name in chosen]


def _measured(units: list[Unit], steps: int, jobs: int) -> Iterator[Cell]:
    """The cells, in the order in which they are finished."""
    if jobs == 1:
        for unit in units:
            yield measure(*unit, steps)
        return
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(min(jobs, len(units)), context, _start_worker) as pool:
        try:
            futures = [pool.submit(measure, *unit, steps) for unit in units]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise MemoryShortage(
                'a process of the probe was killed, which the system does where memory runs out. '
                'Go on with --resume and a lower --jobs.'
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    """The main process handles Ctrl-C; a worker ends with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
