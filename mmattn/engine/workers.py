"""The number of processes that load data."""

import os

MAX_WORKERS = 8  # of one data loader; more seldom load faster, and each takes memory
# Processes of a run on this machine that share its CPUs, as their launchers say.
_PROCESSES = ('LOCAL_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_SIZE')


def count_workers(value: int | str) -> int:
    """Data workers of a data loader: the config's number, or by the number of CPUs.

    Args:
        value: `num_workers` of the config; 'auto' for the CPUs that this process may use, divided
            by the processes of the run that share them, and at most `MAX_WORKERS`.
    """
    if value != 'auto':
        return value
    return max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // local_processes()))


def local_processes() -> int:
    """Processes of this run on this machine, as its launcher says; 1 without a launcher."""
    return max(1, next((int(os.environ[k]) for k in _PROCESSES if os.environ.get(k)), 1))
