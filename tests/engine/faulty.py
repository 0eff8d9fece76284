"""The tool that TOOL names, with a trace of every step of a training, and faults at steps and ranks
that FAULTS names."""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools'))

from mmengine.hooks import Hook  # noqa: E402

from mmattn.engine import distributed  # noqa: E402
from mmattn.engine.runner import Runner  # noqa: E402
from mmattn.errors import DataError  # noqa: E402

FOLDER = Path(os.environ['TRACE'])


class Trace(Hook):
    """The loss of every step, also of one after which the training is stopped."""

    priority = 'VERY_HIGH'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        with open(FOLDER / f'trace_{runner.rank}.txt', 'a') as file:
            file.write(f'{runner.iter + 1} {outputs["loss"].item().hex()}\n')


class Faults(Hook):
    """Each fault, (rank, step from 1, what), happens once; a marker file tells that it has."""

    priority = 'LOWEST'  # after the hook that notes that the step has begun

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.look(runner, runner.iter + 1)

    def before_test_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.look(runner, batch_idx + 1)

    def look(self, runner, now) -> None:
        self.step = now
        self.arrival(runner.rank).touch()
        for rank, step, what in json.loads(os.environ.get('FAULTS', '[]')):
            marker = FOLDER / f'{what}_{rank}_{step}'
            if (rank, step) == (runner.rank, now) and not marker.exists():
                marker.touch()
                getattr(self, what)(runner)

    def arrival(self, rank) -> Path:
        """The file that says that a rank of this launch has begun the step."""
        return FOLDER / f'trace_{os.environ["MASTER_PORT"]}_{rank}_{self.step}'

    def kill(self, runner) -> None:
        """As a lack of memory in the step does: all ranks have begun it."""
        while not all(self.arrival(rank).exists() for rank in range(runner.world_size)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self, runner) -> None:
        """As a scheduler does: the launcher receives the signal and passes it to all."""
        os.kill(os.getppid(), signal.SIGTERM)
        while not runner.guard.signal_handler.received:
            time.sleep(0.01)

    def hang(self, runner) -> None:
        while True:
            time.sleep(1)

    def fail(self, runner) -> None:
        raise DataError('image x.png is damaged.')

    def cut(self, runner) -> None:
        """Ask the test to cut this machine off, and wait until it has."""
        while not (FOLDER / 'is_cut').exists():
            time.sleep(0.05)


register = Runner.register_hooks


def with_faults(self, *args, **kwargs) -> None:
    register(self, *args, **kwargs)
    self.register_hook(Trace())
    self.register_hook(Faults())


Runner.register_hooks = with_faults

init_process_group = distributed.init_process_group


def start_late(*args) -> None:
    """Rank 0 comes late after a restart: the others must not take its address of before."""
    if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) and os.environ['RANK'] == '0':
        time.sleep(2)
    init_process_group(*args)


distributed.init_process_group = start_late

if __name__ == '__main__':
    sys.exit(importlib.import_module(os.environ.get('TOOL', 'train')).main(sys.argv[1:]))
