"""Killing trainings and saves at random moments, to see that nothing is lost and all is exact."""

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
from mmattn.checkpoint.manifest import remove
from mmattn.checkpoint.plain_values import tensors
from mmattn.checkpoint.write import point_to, write_checkpoint
from mmattn.engine.resume.rng import get_rng_state
from mmattn.engine.train import train
from mmattn.errors import CheckpointError, MmattnError
from mmattn.files import check_empty

_WIDTH = 200_000  # values of the tensor that the save loop writes


class ResumeMismatch(MmattnError):
    """A resumed training differs from the one never killed, or a checkpoint was lost."""


class StepRecorder(Hook):
    """Appends a line for every step, the bits of its losses, and one for what remains at the end.

    Args:
        path: of the file.
    """

    priority = 'LOW'

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        bits = {k: float(v).hex() for k, v in outputs.items()}
        lr = {k: [x.hex() for x in v] for k, v in runner.optim_wrapper.get_lr().items()}
        self._write(str(runner.iter + 1), [bits, lr])

    def after_train(self, runner) -> None:
        self._write('end', state_digest(runner))

    def _write(self, name: str, value) -> None:
        with open(self.path, 'a', encoding='utf-8') as file:
            file.write(json.dumps([name, value]) + '\n')


def state_digest(runner) -> str:
    """sha256 of all parameters, buffers, averages, states of the optimizer and the generators.

    Buffers of the first process alone: those of the others reach no checkpoint and no validation.
    """
    networks = [runner.model, *(h.ema_model for h in runner.hooks if hasattr(h, 'ema_model'))]
    held = [n.state_dict() if runner.rank == 0 else dict(n.named_parameters()) for n in networks]
    state = [held, runner.optim_wrapper.state_dict(), get_rng_state()]
    found = hashlib.sha256()
    for name, value in tensors(state):
        found.update(f'{name} {tuple(value.shape)} {value.dtype}'.encode())
        found.update(_bytes(value))
    return found.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read_record(path: str | Path) -> dict:
    """What a recorder wrote, by step.

    Raises:
        ResumeMismatch: a step that was made again gave something else.
    """
    found: dict = {}
    for line in Path(path).read_text(encoding='utf-8').splitlines():
        try:
            name, value = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        if found.setdefault(name, value) != value:
            raise ResumeMismatch(
                f'{path}: step {name} made again gives {value}, before {found[name]}.'
            )
    return found


def compare_records(record: dict, reference: dict, where: str | Path) -> None:
    """Raise `ResumeMismatch` unless two records are of the same steps, bit for bit."""
    for name in reference:
        if record.get(name) != reference[name]:
            raise ResumeMismatch(
                f'{where}: step {name} gives {record.get(name, "nothing")}, the run never killed '
                f'{reference[name]}.'
            )


def kill_test(
    config: str | Path,
    kills: int,
    seed: int,
    out_dir: str | Path,
    options: dict | list[str] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Train a config, kill it at random moments, resume, and compare with the run never killed.

    Args:
        config: its path; short, as it is trained once for every two kills or so.
        kills: how many.
        seed: of the moments.
        out_dir: an empty folder for the runs.
        options: changes to the config, dotted keys.
        say: called with a sentence about every kill and every comparison.

    Raises:
        ResumeMismatch: a step, or what remains at the end, differs.
        UsageError: the folder is not empty.
    """
    check_empty(Path(out_dir))
    draw = random.Random(seed)
    whole = Path(out_dir) / 'never_killed'
    start = time.monotonic()
    if _wait(_start(config, whole, options), None) != 0:
        raise ResumeMismatch(f'the run never killed failed: see {whole}/output.txt.')
    length = time.monotonic() - start
    reference = read_record(whole / 'record.jsonl')
    say(f'never killed: {len(reference) - 1} steps in {length:.0f} s, end {reference["end"][:12]}')
    done, number = 0, 0
    while done < kills:
        folder, ended = Path(out_dir) / f'run{number}', False
        while not ended:
            moment = draw.uniform(0, length) if done < kills else None
            child = _start(config, folder, options)
            status = _wait(child, moment)
            ended = status == 0
            if status not in (0, -signal.SIGKILL):
                raise ResumeMismatch(f'{folder} ended with {status}: see {folder}/output.txt.')
            if not ended:
                done += 1
                good = last_good(folder)
                last = good.stem if good else 'nothing yet'
                say(f'kill {done} of {kills}: {folder.name} after {moment:.1f} s; has {last}')
        compare_records(read_record(folder / 'record.jsonl'), reference, folder)
        say(f'{folder.name}: every step and the end equal')
        number += 1


def _start(config: str | Path, folder: Path, options) -> int:
    """A process, forked so that nothing is imported again, that trains or goes on training."""
    folder.mkdir(parents=True, exist_ok=True)

    def job() -> None:
        hook = StepRecorder(folder / 'record.jsonl')
        train(config, work_dir=folder, resume='auto', cfg_options=options, hooks=[hook])

    return _fork(job, folder / 'output.txt')


def _fork(job: Callable[[], None], output: Path) -> int:
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
    """The exit status of a child, which is killed with its workers after so many seconds."""
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
    kills: int, seed: int, out_dir: str | Path, say: Callable[[str], None] = print
) -> None:
    """Kill a process that saves without pause, keeping one, and look for what is left.

    Args:
        kills: how many.
        seed: of the moments, 50 to 200 ms after the start.
        out_dir: an empty folder.
        say: called with a sentence at the end.

    Raises:
        ResumeMismatch: after a kill there is no checkpoint, or an older one than was acknowledged.
        UsageError: the folder is not empty.
    """
    folder = Path(out_dir)
    check_empty(folder)
    torch.set_num_threads(1)
    draw, saves = random.Random(seed), 0
    for number in range(kills):
        _wait(_fork(lambda: _save_forever(folder), folder / 'output.txt'), draw.uniform(0.05, 0.2))
        good, told = last_good(folder), 0
        step = int(good.stem.split('_')[1]) if good else 0
        if (folder / 'acknowledged').exists():
            told = int((folder / 'acknowledged').read_text())
        if step < told or (good and not _whole(good, step)):
            raise ResumeMismatch(
                f'kill {number + 1}: step {told} was saved, {step} is left in {folder}.'
            )
        saves = step
    if not saves:
        raise CheckpointError(f'no save ended before its process was killed: {folder}.')
    say(f'{kills} kills in a loop of {saves} saves, keeping one: none unrecoverable')


def _save_forever(folder: Path) -> None:
    good = last_good(folder)
    step = int(good.stem.split('_')[1]) if good else 0
    while True:
        step += 1
        path = folder / f'iter_{step}.pth'
        weights = dict(weight=torch.full((_WIDTH,), float(step)))
        write_checkpoint(path, dict(state_dict=weights, meta=dict(iter=step)), dict(iter=step))
        point_to(path)
        part = folder / 'acknowledged.new'
        part.write_text(str(step))
        os.replace(part, folder / 'acknowledged')
        for old in folder.glob('iter_*.pth'):
            if old != path:
                remove(old)


def _whole(path: Path, step: int) -> bool:
    weight = torch.load(path, weights_only=True)['state_dict']['weight']
    return bool(np.all(weight.numpy() == step))
