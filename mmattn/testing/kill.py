"""Kill tests: kill trainings or saves at random times and check that nothing is lost.

`kill_test` trains a config of yours without interruption, then kills (SIGKILL) and resumes it until
the given number of kills is reached; losses of every step and the final state must be equal bit for
bit. `kill_test_saves` does the same to a loop of saves. The command is `tools/torture.py`.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmengine.hooks import Hook
from torch import Tensor

from mmattn.checkpoint.find import last_good
from mmattn.checkpoint.manifest import remove_checkpoint
from mmattn.checkpoint.plain_values import iter_tensors
from mmattn.checkpoint.write import write_checkpoint, write_pointer
from mmattn.engine.resume.rng import get_rng_state
from mmattn.engine.train import train
from mmattn.errors import CheckpointError, MmattnError
from mmattn.files import check_empty

_TENSOR_SIZE = 200_000  # values of the tensor that the save loop writes


class ResumeMismatch(MmattnError):
    """A resumed training differs from the uninterrupted one, or a checkpoint was lost."""


class StepRecorder(Hook):
    """Appends losses and learning rates of every step to a file, and the final state's digest.

    The numbers are written in hexadecimal, so that nothing is lost by rounding.

    Args:
        path: file to append to, a JSON list [step, values] per line.
    """

    priority = 'LOW'

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        # accuracies are measured in the steps that are logged alone
        losses = {k: float(v).hex() for k, v in outputs.items() if 'loss' in k}
        rates = {k: [x.hex() for x in v] for k, v in runner.optim_wrapper.get_lr().items()}
        self._write(str(runner.iter + 1), [losses, rates])

    def after_train(self, runner) -> None:
        self._write('end', state_digest(runner))

    def _write(self, name: str, value) -> None:
        with open(self.path, 'a', encoding='utf-8') as file:
            file.write(json.dumps([name, value]) + '\n')


def state_digest(runner) -> str:
    """sha256 of all parameters, buffers, averages, optimizer states and random number generators.

    Buffers count for rank 0 only: those of other ranks reach neither a checkpoint nor a validation.
    """
    networks = [runner.model, *(h.ema_model for h in runner.hooks if hasattr(h, 'ema_model'))]
    weights = [n.state_dict() if runner.rank == 0 else dict(n.named_parameters()) for n in networks]
    state = [weights, runner.optim_wrapper.state_dict(), get_rng_state()]
    digest = hashlib.sha256()
    for name, value in iter_tensors(state):
        digest.update(f'{name} {tuple(value.shape)} {value.dtype}'.encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read_record(path: str | Path) -> dict:
    """The values that a `StepRecorder` wrote, by step; 'end' has the digest of the final state.

    Raises:
        ResumeMismatch: a step that was repeated after a kill gave different values.
    """
    record: dict = {}
    for line in Path(path).read_text(encoding='utf-8').splitlines():
        try:
            step, values = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        first = record.setdefault(step, values)
        if first != values:
            raise ResumeMismatch(f'{path}: step {step} repeated gives {values}, before {first}.')
    return record


def compare_records(record: dict, reference: dict, where: str | Path) -> None:
    """Raise `ResumeMismatch` unless two records are equal bit for bit.

    Args:
        record: record of a run that was killed, see `read_record`.
        reference: record of the uninterrupted run.
        where: name of the run, for the message.
    """
    for step in reference:
        if record.get(step) != reference[step]:
            raise ResumeMismatch(
                f'{where}: step {step} gives {record.get(step, "nothing")}, the uninterrupted run '
                f'{reference[step]}.'
            )


def kill_test(
    config: str | Path,
    kills: int,
    seed: int,
    out_dir: str | Path,
    cfg_options: dict | list[str] | None = None,
    print_fn: Callable[[str], None] = print,
) -> None:
    """Train a config, kill it at random times, resume, and compare with an uninterrupted run.

    Args:
        config: path of the config. Keep it short: it is trained about once per two kills.
        kills: number of kills.
        seed: seed for the times of the kills.
        out_dir: empty folder for the runs; `never_killed` in it is the uninterrupted one.
        cfg_options: config values to override, by dotted key.
        print_fn: called with a sentence about every kill and every comparison.

    Raises:
        ResumeMismatch: a step or the final state differs, or a run failed.
        UsageError: the folder is not empty.
    """
    check_empty(Path(out_dir))
    rng = random.Random(seed)
    folder = Path(out_dir) / 'never_killed'
    start = time.monotonic()
    if _wait(_start_training(config, folder, cfg_options), None) != 0:
        raise ResumeMismatch(f'the uninterrupted run failed: see {folder}/output.txt.')
    seconds = time.monotonic() - start
    reference = read_record(folder / 'record.jsonl')
    print_fn(
        f'never killed: {len(reference) - 1} steps in {seconds:.0f} s, end {reference["end"][:12]}'
    )
    killed, number = 0, 0
    while killed < kills:
        folder, finished = Path(out_dir) / f'run{number}', False
        while not finished:
            delay = rng.uniform(0, seconds) if killed < kills else None
            status = _wait(_start_training(config, folder, cfg_options), delay)
            finished = status == 0
            if status not in (0, -signal.SIGKILL):
                raise ResumeMismatch(f'{folder} ended with {status}: see {folder}/output.txt.')
            if not finished:
                killed += 1
                good = last_good(folder)
                print_fn(
                    f'kill {killed} of {kills}: {folder.name} after {delay:.1f} s; has '
                    f'{good.stem if good else "no checkpoint yet"}'
                )
        compare_records(read_record(folder / 'record.jsonl'), reference, folder)
        print_fn(f'{folder.name}: every step and the final state are equal')
        number += 1


def _start_training(config: str | Path, folder: Path, cfg_options) -> int:
    """Train or resume in a forked process, which imports nothing again; returns its id."""
    folder.mkdir(parents=True, exist_ok=True)

    def job() -> None:
        hook = StepRecorder(folder / 'record.jsonl')
        train(config, work_dir=folder, resume='auto', cfg_options=cfg_options, hooks=[hook])

    return _fork(job, folder / 'output.txt')


def _fork(job: Callable[[], None], output: Path) -> int:
    """Run a function in a forked process with its output appended to a file; returns its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        job()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, seconds: float | None) -> int:
    """Wait for a child process, killing it and its workers after a time; returns its exit status.

    Args:
        child: process id.
        seconds: time until the kill; None waits for the end.
    """
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG if end else 0)
        if pid:
            break
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            end = None
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # its workers
    return os.waitstatus_to_exitcode(status)


def kill_test_saves(
    kills: int, seed: int, out_dir: str | Path, print_fn: Callable[[str], None] = print
) -> None:
    """Kill a process that saves in a loop, keeping one checkpoint, and check what is left.

    Args:
        kills: number of kills.
        seed: seed for the times of the kills, 50 to 200 ms after the start of the process.
        out_dir: empty folder for the checkpoints.
        print_fn: called with a sentence at the end.

    Raises:
        ResumeMismatch: after a kill the last acknowledged checkpoint is missing or damaged.
        CheckpointError: no save was finished before its process was killed.
        UsageError: the folder is not empty.
    """
    folder = Path(out_dir)
    check_empty(folder)
    torch.set_num_threads(1)
    rng, saves = random.Random(seed), 0
    for number in range(kills):
        _wait(_fork(lambda: _save_forever(folder), folder / 'output.txt'), rng.uniform(0.05, 0.2))
        good, acknowledged = last_good(folder), 0
        step = int(good.stem.split('_')[1]) if good else 0
        if (folder / 'acknowledged').exists():
            acknowledged = int((folder / 'acknowledged').read_text())
        if step < acknowledged or (good and not _is_intact(good, step)):
            raise ResumeMismatch(
                f'kill {number + 1}: step {acknowledged} was saved, {step} is left in {folder}.'
            )
        saves = step
    if not saves:
        raise CheckpointError(f'no save ended before its process was killed: {folder}.')
    print_fn(f'{kills} kills in a loop of {saves} saves, keeping one: none unrecoverable')


def _save_forever(folder: Path) -> None:
    """Save a checkpoint, acknowledge it, remove older ones; again and again."""
    good = last_good(folder)
    step = int(good.stem.split('_')[1]) if good else 0
    while True:
        step += 1
        path = folder / f'iter_{step}.pth'
        weights = dict(weight=torch.full((_TENSOR_SIZE,), float(step)))
        write_checkpoint(path, dict(state_dict=weights, meta=dict(iter=step)), dict(iter=step))
        write_pointer(path)
        part = folder / 'acknowledged.new'
        part.write_text(str(step))
        os.replace(part, folder / 'acknowledged')
        for other in folder.glob('iter_*.pth'):
            if other != path:
                remove_checkpoint(other)


def _is_intact(path: Path, step: int) -> bool:
    """Whether a checkpoint has the values that `_save_forever` wrote at a step."""
    weight = torch.load(path, weights_only=True)['state_dict']['weight']
    return bool(np.all(weight.numpy() == step))
