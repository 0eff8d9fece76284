"""Whether a training on a CPU runs more threads than cores are free.

OpenMP, which computes for torch on a CPU, makes its threads wait for each other by spinning. Two
trainings that share their cores so take the time from each other in which they wait.

Measured from /proc/stat and, in a container, from the files of cgroup v2. On a system without
these nothing is measured, and no warning is given.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from mmattn.log import warn

from .distributed import is_main
from .workers import local_processes

PAGE = 'https://github.com/mmattn/mmattn/blob/main/docs/shared_machines.md'
_MARGIN = 0.5  # cores; less may be a program that runs for a moment
_SHORTEST = 0.2  # s; /proc/stat counts in steps of 0.01 s for each core
_BUSY = 1, 2, 3, 6, 7  # columns of /proc/stat: user, nice, system, irq, softirq
_warned = False  # a command may train several times


class Usage(NamedTuple):
    """What has been used of the cores until now.

    Attributes:
        seconds: a clock, s.
        own: CPU time of this process and the processes that it has started and ended, s.
        limits: (cores that this process may use, CPU time in s of all processes on them): of the
            machine, then of the container, if it has a limit of its own.
    """

    seconds: float
    own: float
    limits: tuple[tuple[float, float], ...]


def read_usage(root: Path = Path('/')) -> Usage | None:
    """The usage until now; None where the system does not tell.

    Args:
        root: folder that has `proc` and `sys`.
    """
    try:
        cores = os.sched_getaffinity(0)
        limits = [(float(len(cores)), _busy_seconds(root / 'proc' / 'stat', cores))]
    except (AttributeError, OSError, ValueError):  # not Linux, or another /proc
        return None
    with contextlib.suppress(OSError, ValueError, StopIteration):  # no container, or no limit
        limits.append(_container(root / 'sys' / 'fs' / 'cgroup'))
    return Usage(time.monotonic(), sum(os.times()[:4]), tuple(limits))


def _busy_seconds(stat: Path, cores: set[int]) -> float:
    """CPU time that these cores have spent, s."""
    rows = [line.split() for line in stat.read_text(encoding='ascii').splitlines()]
    rows = [row for row in rows if row[0] in {f'cpu{core}' for core in cores}]
    if len(rows) < len(cores):
        raise ValueError(f'{stat} has {len(rows)} of {len(cores)} cores')
    return sum(int(row[i]) for row in rows for i in _BUSY) / os.sysconf('SC_CLK_TCK')


def _container(folder: Path) -> tuple[float, float]:
    """Cores that a container may use, and CPU time in s that its processes have used."""
    quota, period = (folder / 'cpu.max').read_text(encoding='ascii').split()  # 'max': no number
    cores = int(quota) / int(period)
    lines = (folder / 'cpu.stat').read_text(encoding='ascii').splitlines()
    used = next(line for line in lines if line.startswith('usage_usec'))
    return cores, int(used.split()[1]) / 1e6


def find_shortage(before: Usage, after: Usage, threads: int, processes: int = 1) -> str | None:
    """A sentence on how many threads run on how many free cores; None if there are enough.

    Data workers are not counted: they wait without spinning.

    Args:
        before, after: usage at the start and at the end of some time of this process.
        threads: threads of each process.
        processes: processes of this run on this machine. With several, the load of other programs
            is not measured: it cannot be separated from theirs.
    """
    seconds = after.seconds - before.seconds
    if seconds < _SHORTEST:
        return None
    own, found = after.own - before.own, []
    for (cores, used), (_, used_before) in zip(after.limits, before.limits):
        others = max(0.0, (used - used_before - own) / seconds) if processes == 1 else 0.0
        found.append((cores - others, cores, others))
    free, cores, others = min(found)
    total = threads * processes
    fitting = max(1, int(cores * threads / (total + others)))
    if total <= free + _MARGIN or fitting >= threads:  # a single thread waits for no other
        return None
    here = f'{processes} processes of {threads} threads' if processes > 1 else f'{threads} threads'
    load = f', of which other processes keep {others:.1f} busy' if others >= 0.05 else ''
    passive = os.environ.get('OMP_WAIT_POLICY', '').lower() == 'passive'
    if passive:
        why, policy = 'Every step waits for the slowest thread', ''
    else:
        why = 'OpenMP threads wait by spinning, and two trainings may be ten times slower each'
        policy = ' OMP_WAIT_POLICY=passive'
    return (
        f'{here} run here on {cores:g} cores{load}. {why}. Start each training with '
        f'OMP_NUM_THREADS={fitting}{policy}, see {PAGE}'
    )


def warn_of_shortage(before: Usage | None, network: nn.Module) -> None:
    """Warn once per command, on rank 0, if a training on a CPU finds too few free cores.

    Args:
        before: usage when the command began; the network is built since then.
        network: the network to be trained.
    """
    global _warned
    device = next((p.device.type for p in network.parameters()), '')
    if _warned or before is None or device != 'cpu' or not is_main():
        return
    after = read_usage()
    threads, processes = torch.get_num_threads(), local_processes()
    if after and (shortage := find_shortage(before, after, threads, processes)):
        _warned = True
        warn(shortage)
