"""Several processes: how they meet, and which of them a run failed for.

The process that fails first leaves `exit_status.json` in the work dir (see `mmattn.exit_status`).
One that is killed or hangs leaves nothing: the others see a closed connection or a time-out. The
survivors then report in the group's store, and the missing rank is named as the cause.
"""

import contextlib
import json
import logging
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
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from mmattn.checkpoint.find import last_good
from mmattn.errors import DistributedError, Exit, Terminated, UsageError, explain
from mmattn.exit_status import clear_status, read_status, write_status

TIMEOUT = 600  # seconds without an answer of the others: `env_cfg.dist_cfg.timeout`
_START = 60  # seconds for all to begin, at least
_GRACE = 5  # seconds in which a process says that it is there


def meet(launcher: str, settings: dict) -> None:
    """Start the process group: by nccl, or by gloo where there is no GPU.

    Args:
        launcher: 'pytorch', 'slurm' or 'mpi'; the last two need CUDA.
        settings: `env_cfg.dist_cfg` of the config: backend, timeout in seconds.
    """
    if dist.is_initialized():  # never ended before the process: a second group would find the
        return  # addresses of the first in the launcher's store, and wait for them
    check_launcher(launcher)
    cuda = torch.cuda.is_available()
    seconds, backend = timeout_of(settings), settings.get('backend', 'nccl') if cuda else 'gloo'
    # else a rank that waits for one that hangs would be aborted, and could not say for whom
    os.environ.setdefault('TORCH_NCCL_BLOCKING_WAIT', '1')
    if launcher != 'pytorch':
        init_dist(launcher, **dict(settings, backend=backend, timeout=seconds))
        return
    if cuda:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    store, rank, world = _store(seconds)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=seconds)
    )


def _store(seconds: float) -> tuple[dist.Store, int, int]:
    """What all processes of one attempt share, rank of this one, and their number.

    torchrun with `--master-port` keeps one store over its restarts, and with it the addresses of
    the processes that ended.
    """
    store, rank, world = next(rendezvous('env://', timeout=timedelta(seconds=seconds)))
    attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    return dist.PrefixStore(f'mmattn/{attempt}', store), rank, world


def check_launcher(launcher: str) -> None:
    """Raise if there is nothing to start a group with."""
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
    seconds = settings.get('timeout', TIMEOUT)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
        raise UsageError(f'env_cfg.dist_cfg.timeout={seconds!r}: allowed are seconds above 0.')
    return seconds


class DistributedRun:
    """The processes of a run, as one of them sees the others.

    Attributes:
        folder: where they leave word.
        training: else it is a test, which is not resumed.
        runner: of this process, once there is one.
        nodes: host name and process id of each.
    """

    def __init__(self, folder: Path, training: bool = True) -> None:
        self.folder, self.training = folder, training
        self.runner = self.store = None
        names = 'RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'
        self.rank = next((int(os.environ[n]) for n in names if n in os.environ), 0)
        self.timeout: float = TIMEOUT
        self.nodes: list[dict] = []

    @property
    def step(self) -> int:
        """The iteration that is being made, from 1; 0 before the first."""
        started = self.runner is not None and self.runner.guard.signal_handler.started
        return self.runner.iter + 1 if started else 0

    def join(self, launcher: str, settings: dict) -> None:
        """Meet the others, and learn where they are."""
        if self.rank == 0:
            clear_status(self.folder)  # before the others can leave a word
        check_launcher(launcher)
        self.timeout = timeout_of(settings)
        if launcher == 'pytorch':  # a slow start of one is waited for longer than a step
            self._introduce(max(self.timeout, _START))
        meet(launcher, settings)
        if launcher != 'pytorch':  # mmengine has found the address now
            self._introduce(self.timeout)

    def _introduce(self, seconds: float) -> None:
        store, self.rank, world = _store(seconds)
        self.store = dist.PrefixStore('ranks', store)
        self.store.set(f'{self.rank}', json.dumps(dict(host=socket.gethostname(), pid=os.getpid())))
        nodes = []
        for rank in range(world):
            try:
                nodes.append(json.loads(self.store.get(f'{rank}')))
            except dist.DistError as error:
                raise DistributedError(
                    f'rank {rank} did not come within {seconds:g} s. Look whether its machine '
                    'reaches the address and port of the first.'
                ) from error
        self.nodes = nodes

    @contextlib.contextmanager
    def report_exit(self) -> Iterator[None]:
        """Leave a word on how the block ends, and make of an echo the failure it is of."""
        try:
            yield
            dist.barrier()  # else one that is done would be first
            if self.rank == 0:
                self._write(Exit.OK, 'done')
        except BaseException as error:
            try:
                named = self._named(error)
            except Terminated as ended:  # the launcher ends us while we ask who is there
                named = self._named(ended)
            known = explain(named or error)
            code, text = known or (Exit.BUG, f'unexpected {type(error).__name__}: {error}')
            self._write(code, text)
            if named:
                raise named from error
            raise

    def raise_peer_failure(self) -> None:
        """Raise what another process failed with, if one did; one that was told to stop did not."""
        first = read_status(self.folder)
        if first and first['rank'] != self.rank and first['code'] != Exit.STOPPED:
            raise _echo(first)

    def _write(self, code: int, text: str) -> None:
        try:
            write_status(self.folder, self.rank, code, text, self.step)
        except OSError as error:
            print_log(
                f'cannot write to {self.folder}: {error}', logger='current', level=logging.WARNING
            )

    # ---- whose failure it is -------------------------------------------------------------------
    def _named(self, error: BaseException) -> Exception | None:
        """What an error truly is that is another's echo, or DDP's; None if it is our own."""
        text = str(error)
        if 'Expected to have finished reduction' in text:
            return self._unused(text)
        if not self.nodes:
            return None
        if isinstance(error, Terminated):  # the launcher ends us all when one was killed
            dead = [rank for rank in range(len(self.nodes)) if self._is_dead(rank)]
            first = read_status(self.folder)
            return _echo(first) if first else self._blame(dead, text) if dead else None
        if 'gloo/' not in text and not isinstance(error, dist.DistError):
            return None
        silent = self._silent()
        first = read_status(self.folder)
        return _echo(first) if first else self._blame(silent, text)

    def _silent(self) -> list[int]:
        """Who does not say that it is there; those that are known to be dead, if there are any."""
        found: list[list[int]] = []
        asking = threading.Thread(target=lambda: found.append(self._ask()), daemon=True)
        asking.start()
        asking.join(2 * _GRACE)  # who has the store is asked first
        if found:
            return found[0]
        here = self.nodes[self.rank]['host']  # the store's machine, that of rank 0, is gone
        gone = self.nodes[0]['host']
        return [r for r, node in enumerate(self.nodes) if node['host'] == gone != here]

    def _ask(self) -> list[int]:
        end = time.monotonic() + _GRACE
        self.store.set(f'here/{self.rank}', '1')
        while True:
            away = [r for r in range(len(self.nodes)) if not self.store.check([f'here/{r}'])]
            dead = [rank for rank in away if self._is_dead(rank)]
            if dead or not away or read_status(self.folder) or time.monotonic() > end:
                return dead or away
            time.sleep(0.1)

    def _is_dead(self, rank: int) -> bool:
        """Whether a process of this machine is gone; False for those of others."""
        node = self.nodes[rank]
        if node['host'] != socket.gethostname():
            return False
        try:
            os.kill(node['pid'], 0)
            stat = Path(f'/proc/{node["pid"]}/stat').read_text(encoding='utf-8')
        except ProcessLookupError:
            return True
        except OSError:  # another user's, or no such folder here
            return False
        return stat.rpartition(')')[2].split()[0] in 'ZX'

    def _blame(self, silent: list[int], text: str) -> DistributedError:
        at, then = '', '. Run again.'
        if self.training:
            at = f' at iteration {self.step}' if self.step else ' before the first iteration'
            good = last_good(self.folder)
            name = good.stem if good else 'none'
            then = f'; last good checkpoint: {name}. Run again with --resume.'
        names = _listed(silent)
        if not silent:
            return DistributedError(f'the processes lost each other{at}: {_line(text)}{then}')
        hosts = sorted({self.nodes[r]['host'] for r in silent} - {socket.gethostname()})
        names += f' on {", ".join(hosts)}' if hosts else ''
        if all(map(self._is_dead, silent)):
            were = 'was' if len(silent) == 1 else 'were'
            return DistributedError(
                f'{names} {were} killed (SIGKILL; probably out of memory){at}{then}'
            )
        if re.search('tim(ed )?out', text, re.IGNORECASE):
            return DistributedError(f'no answer from {names} for {self.timeout:g} s{at}{then}')
        return DistributedError(
            f'{names} ended without a word{at}: killed, or the machine is lost{then}'
        )

    def _unused(self, text: str) -> UsageError:
        """DDP knows parameters by number; a user, by name."""
        model = self.runner.model.module if is_model_wrapper(self.runner.model) else None
        learnt = [n for n, p in model.named_parameters() if p.requires_grad] if model else []
        found = re.search(r'did not receive grad for rank \d+: ([\d ]+)', text)
        names = [learnt[int(i)] for i in found[1].split() if int(i) < len(learnt)] if found else []
        more = f' and {len(names) - 5} more' if len(names) > 5 else ''
        return UsageError(
            f'parameter {", ".join(names[:5]) or "?"}{more} got no gradient in DDP on rank '
            f'{self.rank}. Have every loss touch it, freeze it, or set '
            'find_unused_parameters=True in the config.'
        )


def _echo(first: dict) -> DistributedError:
    error = DistributedError(f'rank {first["rank"]} failed: {first["message"]}')
    error.code = Exit(first['code'])
    return error


def _listed(ranks: list[int]) -> str:
    return f'rank{"s" if len(ranks) > 1 else ""} {", ".join(map(str, ranks))}'


def _line(text: str) -> str:
    return text.strip().partition('\n')[0]


def world_size(cfg: Config) -> int:
    """How many processes train."""
    counts = dict(pytorch='WORLD_SIZE', slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE')
    return int(os.environ.get(counts.get(cfg.launcher, ''), 1))


def is_main() -> bool:
    return int(os.environ.get('RANK', 0)) == 0 and get_dist_info()[0] == 0
