"""Distributed runs: starting the process group, and finding the rank that made a run fail.

The process that fails first writes `exit_status.json` into the work dir (see `mmattn.exit_status`).
One that is killed or hangs writes nothing: the others see a closed connection or a time-out. The
survivors then report in the group's store, and the missing rank is named as the cause.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import get_dist_info, init_dist
from mmengine.model import is_model_wrapper
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from mmattn.checkpoint.download import fetch
from mmattn.checkpoint.find import last_good
from mmattn.checkpoint.read import read_checkpoint
from mmattn.errors import DistributedError, Exit, Terminated, UsageError, explain
from mmattn.exit_status import clear_status, read_status, write_status
from mmattn.log import warn
from mmattn.text import some
from mmattn.torch_compat import DistError

from .signals import SignalInterrupt

TIMEOUT = 600  # seconds without an answer from the other ranks: `env_cfg.dist_cfg.timeout`
_START_TIMEOUT = 60  # least seconds for all ranks to start
_REPORT_SECONDS = 5  # in which a surviving rank reports in the store


def init_process_group(launcher: str, settings: dict) -> None:
    """Start the process group: with nccl, or with gloo if there is no GPU.

    Args:
        launcher: 'pytorch', 'slurm' or 'mpi'; the last two need CUDA.
        settings: `env_cfg.dist_cfg` of the config: backend, timeout in seconds.

    Raises:
        UsageError: the launcher does not work here, or the timeout is invalid.
    """
    # The group lives as long as the process: a second one would read the addresses of the first
    # from the launcher's store and wait for them.
    if dist.is_initialized():
        return
    check_launcher(launcher)
    cuda = torch.cuda.is_available()
    seconds, backend = timeout_of(settings), settings.get('backend', 'nccl') if cuda else 'gloo'
    # otherwise NCCL aborts a rank that waits for a hanging one before it can name that one
    os.environ.setdefault('TORCH_NCCL_BLOCKING_WAIT', '1')
    if launcher != 'pytorch':
        init_dist(launcher, **dict(settings, backend=backend, timeout=seconds))
        return
    if cuda:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    store, rank, world = _rendezvous(seconds)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=seconds)
    )


def _rendezvous(seconds: float) -> tuple[dist.Store, int, int]:
    """The store that all processes of this attempt share, the rank of this one, the world size.

    The store has a prefix for every attempt: torchrun with `--master-port` keeps one store over its
    restarts, and with it the addresses of processes that have ended.
    """
    store, rank, world = next(rendezvous('env://', timeout=timedelta(seconds=seconds)))
    attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    return dist.PrefixStore(f'mmattn/{attempt}', store), rank, world


def check_launcher(launcher: str) -> None:
    """Raise `UsageError` if the launcher cannot start a group here."""
    if launcher != 'pytorch' and not torch.cuda.is_available():
        raise UsageError(
            f'--launcher {launcher} needs CUDA. On CPUs use torchrun and --launcher pytorch.'
        )
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise UsageError(
            '--launcher pytorch without torchrun. '
            'Run: torchrun --nproc-per-node N tools/train.py ...'
        )


def timeout_of(settings: dict) -> float:
    """The timeout of `env_cfg.dist_cfg` in seconds."""
    seconds = settings.get('timeout', TIMEOUT)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
        raise UsageError(f'env_cfg.dist_cfg.timeout={seconds!r}: allowed are seconds above 0.')
    return seconds


class DistributedRun:
    """The processes of a run, as one of them sees the others.

    Args:
        work_dir: folder of `exit_status.json`.
        training: False for a test, which cannot be resumed.

    Attributes:
        rank: rank of this process.
        runner: the runner of this process; None before it is built.
        store: key-value store shared by all processes; None before `join`.
        timeout: seconds to wait for another rank.
        processes: host name and process id of every rank.
    """

    def __init__(self, work_dir: Path, training: bool = True) -> None:
        self.work_dir, self.training = work_dir, training
        self.runner = self.store = None
        names = 'RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'
        self.rank = next((int(os.environ[n]) for n in names if n in os.environ), 0)
        self.timeout: float = TIMEOUT
        self.processes: list[dict] = []

    @property
    def step(self) -> int:
        """The current iteration, counted from 1; 0 before the first."""
        started = self.runner is not None and self.runner.guard.signal_handler.started
        return self.runner.iter + 1 if started else 0

    def join(self, launcher: str, settings: dict) -> None:
        """Start the process group and exchange host names and process ids.

        Args:
            launcher: 'pytorch', 'slurm' or 'mpi'.
            settings: `env_cfg.dist_cfg` of the config.

        Raises:
            DistributedError: a rank did not start in time.
            UsageError: see `init_process_group`.
        """
        if self.rank == 0:
            clear_status(self.work_dir)  # before another rank can write one
        check_launcher(launcher)
        self.timeout = timeout_of(settings)
        if launcher == 'pytorch':  # starting may take longer than a step
            self._register_rank(max(self.timeout, _START_TIMEOUT))
        init_process_group(launcher, settings)
        if launcher != 'pytorch':  # mmengine has set the address by now
            self._register_rank(self.timeout)

    def _register_rank(self, seconds: float) -> None:
        """Put host name and process id of this rank into the store, and read those of all."""
        store, self.rank, world = _rendezvous(seconds)
        self.store = dist.PrefixStore('ranks', store)
        self.store.set(f'{self.rank}', json.dumps(dict(host=socket.gethostname(), pid=os.getpid())))
        processes = []
        for rank in range(world):
            try:
                processes.append(json.loads(self.store.get(f'{rank}')))
            except DistError as error:
                raise DistributedError(
                    f'rank {rank} did not come within {seconds:g} s. Look whether its machine '
                    'reaches the address and port of the first.'
                ) from error
        self.processes = processes

    @contextlib.contextmanager
    def report_exit(self) -> Iterator[None]:
        """Record how the run ended; re-raise a secondary failure as its root cause."""
        try:
            yield
            dist.barrier()  # a rank that is done early must not report before another fails
            if self.rank == 0:
                self._write_status(Exit.OK, 'done')
        except BaseException as caught:
            error = caught.error if isinstance(caught, SignalInterrupt) else caught
            try:
                cause = self._root_cause(error)
            except SignalInterrupt as interrupt:  # by the launcher, while asking who is missing
                cause = self._root_cause(interrupt.error)
            known = explain(cause or error)
            code, message = known or (Exit.BUG, f'unexpected {type(error).__name__}: {error}')
            self._write_status(code, message)
            if cause:
                raise cause from error
            raise

    def raise_peer_failure(self) -> None:
        """Raise the failure of another process, if there is one; an orderly stop is none."""
        status = read_status(self.work_dir)
        if status and status['rank'] != self.rank and status['code'] != Exit.STOPPED:
            raise _secondary_error(status)

    def _write_status(self, code: int, message: str) -> None:
        try:
            write_status(self.work_dir, self.rank, code, message, self.step)
        except OSError as error:
            warn(f'cannot write to {self.work_dir}: {error}')

    # ---- finding the rank that failed first ----------------------------------------------------
    def _root_cause(self, error: BaseException) -> Exception | None:
        """The cause of a secondary failure, or a clearer error for one of DDP; None otherwise."""
        text = str(error)
        if 'Expected to have finished reduction' in text:
            return self._unused_parameters_error(text)
        if not self.processes:
            return None
        if isinstance(error, Terminated):  # the launcher terminates all when one was killed
            dead = [rank for rank in range(len(self.processes)) if self._is_dead(rank)]
            status = read_status(self.work_dir)
            if status:
                return _secondary_error(status)
            return self._missing_ranks_error(dead, text) if dead else None
        if 'gloo/' not in text and not isinstance(error, DistError):
            return None
        missing = self._missing_ranks()
        status = read_status(self.work_dir)
        return _secondary_error(status) if status else self._missing_ranks_error(missing, text)

    def _missing_ranks(self) -> list[int]:
        """Ranks that do not report; only those known to be dead, if there are any."""
        answers: list[list[int]] = []
        thread = threading.Thread(target=lambda: answers.append(self._poll_ranks()), daemon=True)
        thread.start()
        thread.join(2 * _REPORT_SECONDS)
        if answers:
            return answers[0]
        # the store does not answer: the machine of rank 0, which holds it, is gone
        here, gone = self.processes[self.rank]['host'], self.processes[0]['host']
        return [r for r, process in enumerate(self.processes) if process['host'] == gone != here]

    def _poll_ranks(self) -> list[int]:
        """Report in the store, and wait for the others to do so."""
        end = time.monotonic() + _REPORT_SECONDS
        self.store.set(f'here/{self.rank}', '1')
        while True:
            ranks = range(len(self.processes))
            missing = [rank for rank in ranks if not self.store.check([f'here/{rank}'])]
            dead = [rank for rank in missing if self._is_dead(rank)]
            if dead or not missing or read_status(self.work_dir) or time.monotonic() > end:
                return dead or missing
            time.sleep(0.1)

    def _is_dead(self, rank: int) -> bool:
        """Whether a process on this machine has ended; False for those on other machines."""
        process = self.processes[rank]
        if process['host'] != socket.gethostname():
            return False
        try:
            os.kill(process['pid'], 0)
            stat = Path(f'/proc/{process["pid"]}/stat').read_text(encoding='utf-8')
        except ProcessLookupError:
            return True
        except OSError:  # a process of another user, or no /proc
            return False
        return stat.rpartition(')')[2].split()[0] in 'ZX'  # zombie or dead

    def _missing_ranks_error(self, missing: list[int], text: str) -> DistributedError:
        """The error that names ranks which did not report.

        Args:
            missing: the ranks.
            text: message of the error that this process saw.
        """
        when, advice = '', '. Run again.'
        if self.training:
            when = f' at iteration {self.step}' if self.step else ' before the first iteration'
            good = last_good(self.work_dir)
            name = good.stem if good else 'none'
            advice = f'; last good checkpoint: {name}. Run again with --resume.'
        if not missing:
            line = text.strip().partition('\n')[0]
            return DistributedError(f'the processes lost each other{when}: {line}{advice}')
        names = f'rank{"s" if len(missing) > 1 else ""} {", ".join(map(str, missing))}'
        hosts = sorted({self.processes[rank]['host'] for rank in missing} - {socket.gethostname()})
        names += f' on {", ".join(hosts)}' if hosts else ''
        if all(map(self._is_dead, missing)):
            were = 'was' if len(missing) == 1 else 'were'
            return DistributedError(
                f'{names} {were} killed (SIGKILL; probably out of memory){when}{advice}'
            )
        if re.search('tim(ed )?out', text, re.IGNORECASE):
            return DistributedError(f'no answer from {names} for {self.timeout:g} s{when}{advice}')
        return DistributedError(
            f'{names} exited without reporting an error{when}: killed, or the machine is '
            f'lost{advice}'
        )

    def _unused_parameters_error(self, text: str) -> UsageError:
        """DDP's error about parameters without a gradient, by name instead of by number."""
        model = self.runner.model.module if is_model_wrapper(self.runner.model) else None
        trainable = [n for n, p in model.named_parameters() if p.requires_grad] if model else []
        indices = re.search(r'did not receive grad for rank \d+: ([\d ]+)', text)
        indices = [int(index) for index in indices[1].split()] if indices else []
        names = [trainable[index] for index in indices if index < len(trainable)]
        return UsageError(
            f'parameter {some(names) or "?"} got no gradient in DDP on rank {self.rank}. Have '
            'every loss touch it, freeze it, or set find_unused_parameters=True in the config.'
        )


def _secondary_error(status: dict) -> DistributedError:
    """The failure of another rank, with that rank's exit code."""
    error = DistributedError(f'rank {status["rank"]} failed: {status["message"]}')
    error.code = Exit(status['code'])
    return error


def world_size(cfg: Config) -> int:
    """Number of processes that the launcher started; 1 without one."""
    counts = dict(pytorch='WORLD_SIZE', slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE')
    return int(os.environ.get(counts.get(cfg.launcher, ''), 1))


def is_main() -> bool:
    """Whether this is rank 0."""
    return int(os.environ.get('RANK', 0)) == 0 and get_dist_info()[0] == 0


def read_after_download(address: str) -> dict:
    """Read a checkpoint, which rank 0 downloads before the other processes look for it."""
    if '://' in str(address) and get_dist_info()[1] > 1:
        if get_dist_info()[0] == 0:
            fetch(address)
        dist.barrier()
    return read_checkpoint(address)
