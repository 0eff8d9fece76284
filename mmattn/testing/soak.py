"""A long training, to see that memory, open files, threads and checkpoints do not grow with it."""

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

_ALLOWED = 1.0  # MB that a process may grow by in a thousand iterations
_WARM_UP = 0.5  # of the training: caches and allocators fill, workers of validations begin
_SIZE = 0.01  # by which the last checkpoint may differ from the first
_FEWEST = 10  # measurements that tell of a slope
_PAGE = os.sysconf('SC_PAGE_SIZE')


class ResourceGrowth(MmattnError):
    """Something grows with the number of iterations."""


class ResourceRecorder(Hook):
    """Appends a line of what this process and its data workers hold.

    Args:
        path: of the file.
        interval: iterations between two lines.
    """

    priority = 'LOWEST'  # behind what saves and validates

    def __init__(self, path: Path, interval: int) -> None:
        self.path, self.interval = path, interval

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        _give_back()
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


def _give_back() -> None:
    """Have garbage collected and free memory returned: what is left is held by somebody."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another libc keeps what it keeps
        ctypes.CDLL(None).malloc_trim(0)


def _memory(process: int) -> float:
    """MB that a process has in memory."""
    with open(f'/proc/{process}/statm', encoding='utf-8') as file:
        return int(file.read().split()[1]) * _PAGE / 1e6


def _children() -> list[int]:
    own = Path(f'/proc/self/task/{os.getpid()}/children')
    return [int(child) for child in own.read_text(encoding='utf-8').split()]


def soak_test(
    config: str | Path,
    out_dir: str | Path,
    options: dict | list[str] | None = None,
    interval: int = 20,
    say: Callable[[str], None] = print,
) -> None:
    """Train a config, and see that nothing grows in its second half.

    Args:
        config: its path.
        out_dir: an empty folder; `footprint.jsonl` in it has all that was measured.
        options: changes to the config, dotted keys.
        interval: iterations between two measurements.
        say: called with a sentence about each quantity.

    Raises:
        ResourceGrowth: a process grows by more than 1 MB in a thousand iterations, or there are
            more open files, threads or shared memory segments, or the size of the checkpoint
            changes by more than 1 %.
        UsageError: the folder is not empty; too few iterations; no Linux.
    """
    if not Path('/proc/self/statm').exists():
        raise UsageError('--soak reads /proc, which this system does not have.')
    folder = Path(out_dir)
    check_empty(folder)
    path = folder / 'footprint.jsonl'
    train(config, work_dir=folder, cfg_options=options, hooks=[ResourceRecorder(path, interval)])
    text = path.read_text(encoding='utf-8') if path.exists() else ''
    check_growth([json.loads(line) for line in text.splitlines()], say)


def check_growth(lines: list[dict], say: Callable[[str], None] = print) -> None:
    """Say how each quantity of `ResourceRecorder` went, and raise what grows."""
    kept = [line for line in lines if line['iteration'] > _WARM_UP * lines[-1]['iteration']]
    if len(kept) < _FEWEST:
        raise UsageError(
            f'{len(kept)} measurements in the second half, allowed are {_FEWEST} and more: train '
            'longer, with train_cfg.max_iters or max_epochs.'
        )
    steps = np.array([line['iteration'] for line in kept]) / 1000
    say(f'iterations {kept[0]["iteration"]} to {kept[-1]["iteration"]}, {len(kept)} measurements')
    grown = []
    for name in 'memory', 'workers':
        values = np.array([line[name] for line in kept])
        slope = np.polyfit(steps, values, 1)[0]
        say(f'{name}: {values.min():.1f} to {values.max():.1f} MB, {slope:+.2f} MB in a thousand')
        grown += [name] if slope > _ALLOWED else []
    third = len(kept) // 3
    for name in 'files', 'threads', 'shared':
        values = [line[name] for line in kept]
        say(f'{name}: {min(values)} to {max(values)}')
        grown += [name] if max(values[-third:]) > max(values[:third]) else []
    sizes = [line['checkpoint'] for line in kept if line['checkpoint']]
    if sizes:
        say(f'checkpoint: {min(sizes):.3f} to {max(sizes):.3f} MB')
        grown += ['checkpoint'] if abs(sizes[-1] / sizes[0] - 1) > _SIZE else []
    if grown:
        raise ResourceGrowth(f'{", ".join(grown)} grew with the training.')
