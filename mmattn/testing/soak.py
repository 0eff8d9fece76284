"""Soak test: check that memory, open files, threads and checkpoints do not grow in a training."""

import contextlib
import ctypes
import gc
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mmengine.hooks import Hook

from mmattn.checkpoint.find import last_good
from mmattn.engine.train import train
from mmattn.errors import MmattnError, UsageError
from mmattn.files import check_empty

_MAX_SLOPE = 1.0  # MB that a process may grow by in 1000 iterations
_WARM_UP = 0.5  # share of the training: caches and allocators fill, workers of validations start
_MAX_SIZE_CHANGE = 0.01  # relative difference between the first and the last checkpoint
_MIN_MEASUREMENTS = 10  # to fit a slope
_PAGE = os.sysconf('SC_PAGE_SIZE')


class ResourceGrowth(MmattnError):
    """Something grows with the number of iterations."""


class ResourceRecorder(Hook):
    """Appends the resources of this process and its data workers to a file.

    Args:
        path: file to append to, a JSON object per line.
        interval: iterations between two lines.
    """

    priority = 'LOWEST'  # after saving and validating

    def __init__(self, path: Path, interval: int) -> None:
        self.path, self.interval = path, interval

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        _release_memory()
        good = last_good(Path(runner.work_dir))
        line = dict(
            iteration=runner.iter + 1,
            memory=_memory(os.getpid()),
            workers=sum(map(_memory, _children())),
            files=len(os.listdir('/proc/self/fd')),
            threads=len(os.listdir('/proc/self/task')),
            shared=len(os.listdir('/dev/shm')),
            checkpoint=good.stat().st_size / 1e6 if good else None,
        )
        with open(self.path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(line) + '\n')


def _release_memory() -> None:
    """Collect garbage and return free memory to the system: what remains is in use."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _memory(pid: int) -> float:
    """Resident memory of a process in MB."""
    with open(f'/proc/{pid}/statm', encoding='utf-8') as file:
        return int(file.read().split()[1]) * _PAGE / 1e6


def _children() -> list[int]:
    """Process ids of the children of this process."""
    path = Path(f'/proc/self/task/{os.getpid()}/children')
    return [int(pid) for pid in path.read_text(encoding='utf-8').split()]


def soak_test(
    config: str | Path,
    out_dir: str | Path,
    cfg_options: dict | list[str] | None = None,
    interval: int = 20,
    print_fn: Callable[[str], None] = print,
) -> None:
    """Train a config, and check that nothing grows in the second half of the training.

    Args:
        config: path of the config.
        out_dir: empty folder for the run; all measurements are in its `footprint.jsonl`.
        cfg_options: config values to override, by dotted key.
        interval: iterations between two measurements.
        print_fn: called with a sentence about each quantity.

    Raises:
        ResourceGrowth: a process grows by more than 1 MB in 1000 iterations, or there are more
            open files, threads or shared memory segments, or the size of the checkpoint changes by
            more than 1 %.
        UsageError: the folder is not empty; too few iterations; the system is not Linux.
    """
    if not Path('/proc/self/statm').exists():
        raise UsageError('--soak reads /proc, which this system does not have.')
    folder = Path(out_dir)
    check_empty(folder)
    path = folder / 'footprint.jsonl'
    hooks = [ResourceRecorder(path, interval)]
    train(config, work_dir=folder, cfg_options=cfg_options, hooks=hooks)
    text = path.read_text(encoding='utf-8') if path.exists() else ''
    check_growth([json.loads(line) for line in text.splitlines()], print_fn)


def check_growth(measurements: list[dict], print_fn: Callable[[str], None] = print) -> None:
    """Print the range of each quantity in the second half, and raise if one grows.

    Args:
        measurements: lines of a `ResourceRecorder`, in order.
        print_fn: called with a sentence about each quantity.

    Raises:
        ResourceGrowth: see `soak_test`.
        UsageError: too few measurements.
    """
    start = _WARM_UP * measurements[-1]['iteration'] if measurements else 0
    measured = [m for m in measurements if m['iteration'] > start]
    if len(measured) < _MIN_MEASUREMENTS:
        raise UsageError(
            f'{len(measured)} measurements in the second half, allowed are {_MIN_MEASUREMENTS} and '
            'more: train longer, with train_cfg.max_iters or max_epochs.'
        )
    first, last = measured[0]['iteration'], measured[-1]['iteration']
    print_fn(f'iterations {first} to {last}, {len(measured)} measurements')
    thousands = np.array([m['iteration'] for m in measured]) / 1000
    growing = []
    for name in 'memory', 'workers':
        values = np.array([m[name] for m in measured])
        slope = np.polyfit(thousands, values, 1)[0]
        print_fn(
            f'{name}: {values.min():.1f} to {values.max():.1f} MB, {slope:+.2f} MB per 1000 '
            'iterations'
        )
        growing += [name] if slope > _MAX_SLOPE else []
    third = len(measured) // 3
    for name in 'files', 'threads', 'shared':
        values = [m[name] for m in measured]
        print_fn(f'{name}: {min(values)} to {max(values)}')
        growing += [name] if max(values[-third:]) > max(values[:third]) else []
    sizes = [m['checkpoint'] for m in measured if m['checkpoint']]
    if sizes:
        print_fn(f'checkpoint: {min(sizes):.3f} to {max(sizes):.3f} MB')
        growing += ['checkpoint'] if abs(sizes[-1] / sizes[0] - 1) > _MAX_SIZE_CHANGE else []
    if growing:
        raise ResourceGrowth(f'{", ".join(growing)} grew with the training.')
