"""Schedulers: start commands on this machine, with Slurm or on a Ray cluster."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable

from mmattn.errors import UsageError

from .ablation_run import Run

Scheduler = Callable[[Run, str], subprocess.Popen]


def make_scheduler(name: str, options: str, threads: int) -> Scheduler:
    """A function that starts the command of a run and returns a process to wait for.

    Args:
        name: 'local', 'slurm' or 'ray'.
        options: options of sbatch, or resources of a Ray task such as 'num_gpus=1'.
        threads: OMP_NUM_THREADS of local runs.

    Raises:
        UsageError: sbatch or ray is not installed.
    """
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))

    def local(run: Run, command: str) -> subprocess.Popen:
        return _start(run, ['bash', '-c', command], environment)

    def slurm(run: Run, command: str) -> subprocess.Popen:
        job = ['sbatch', '--wait', f'--job-name={run.attention}-{run.seed}']
        job += [f'--output={run.log}', '--open-mode=append', *shlex.split(options)]
        return _start(run, [*job, f'--wrap={command}'], dict(os.environ))

    def ray(run: Run, command: str) -> subprocess.Popen:
        resources = dict(pair.split('=', 1) for pair in shlex.split(options)) or dict(num_cpus=1)
        worker = [sys.executable, '-m', 'mmattn.analysis.ray_job', json.dumps(resources), command]
        return _start(run, worker, dict(os.environ))

    if name == 'slurm' and not shutil.which('sbatch'):
        raise UsageError('--scheduler slurm: sbatch is not on PATH. Run this where Slurm is.')
    if name == 'ray':
        try:
            import ray as _  # noqa: F401
        except ImportError as error:
            raise UsageError('--scheduler ray: ray is not installed: pip install ray.') from error
    return dict(local=local, slurm=slurm, ray=ray)[name]


def _start(run: Run, command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    run.folder.mkdir(parents=True, exist_ok=True)
    with run.log.open('a') as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True,
        )  # fmt: skip
