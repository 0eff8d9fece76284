"""Exact resume: a training is a function of its seed, its config and the number of the step.

Which images a step sees is arithmetic on its number: the sampler yields positions that count
through all epochs, and the data set makes (epoch, slot) and an index of them. What random
transforms do to an image is drawn from generators that are seeded for that slot alone and put back
behind it, so neither workers nor read-ahead nor restarts matter, and no epoch repeats another. The
data loader draws from a generator of its own. What is left, the randomness of the network, is in
the checkpoint, a row for each process, and is put back right before the first step of a resumed
run. Loops differ from mmengine's in one thing: they begin within an epoch.
"""

import contextlib
import random
import re
import shutil
import signal
from collections import deque
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from hashlib import blake2b
from itertools import count
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dataset.utils import worker_init_fn as engine_worker_init
from mmengine.dist import all_gather, broadcast, get_dist_info
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from mmattn.checkpoint.plain_values import plain_part
from mmattn.errors import DataError, MmattnError, WriteError

_SHOWN = 12  # samples named in an error


def key(*parts) -> int:
    """63 bits that depend on the parts alone, not on Python's hash of this process."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), 'big') >> 1


@contextlib.contextmanager
def scoped(seed: int) -> Iterator[None]:
    """Seed the three global generators of the CPU, and put them back behind it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs, too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Positioned(Dataset):
    """A data set that is asked for positions: epoch * size + slot.

    Args:
        inner: the data set, of any kind; its attributes are this one's.
        seed: of the order of every epoch and of the transforms.
        shuffle: off leaves the order as it is.
        size: slots of an epoch, those that fill it up over all processes included.
    """

    def __init__(self, inner, seed: int, shuffle: bool, size: int) -> None:
        self.inner, self.seed, self.shuffle, self.size = inner, seed, shuffle, size
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str):
        if name.startswith('__') or 'inner' not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def pipeline(self):
        return self.inner.pipeline

    @pipeline.setter
    def pipeline(self, value) -> None:  # of hooks that switch transforms late in a training
        self.inner.pipeline = value

    def index(self, position: int) -> int:
        """The index in the data set that stands at a position."""
        epoch, slot = divmod(position, self.size)
        slot %= len(self.inner)
        return self._order(epoch)[slot] if self.shuffle else slot

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            if len(self._orders) > 1:  # batches cross borders, so two are kept
                del self._orders[min(self._orders)]
            generator = torch.Generator().manual_seed(key(self.seed, 'order', epoch))
            self._orders[epoch] = torch.randperm(len(self.inner), generator=generator).tolist()
        return self._orders[epoch]

    def get_data_info(self, position: int) -> dict:
        """What a batch sampler asks for, such as width and height."""
        return self.inner.get_data_info(self.index(position))

    def __getitem__(self, position: int) -> Any:
        with scoped(key(self.seed, 'sample', *divmod(position, self.size))):
            try:
                return self.inner[self.index(position)]
            except Exception as error:
                failure = _of_a_sample(error, self, position)
                if failure is None:
                    raise
                raise failure from error


class Positions(Sampler):
    """The positions of this process: every `world`-th.

    Args:
        dataset: asked for what is yielded.
        endless: one stream through all epochs, as of `InfiniteSampler`; else an epoch at a time.
        length: of an epoch, for this process.
    """

    def __init__(self, dataset: Positioned, endless: bool, length: int) -> None:
        self.dataset, self.endless, self.length = dataset, endless, length
        self.rank, self.world = get_dist_info()
        self.epoch = self.first = 0
        self.pending: deque[int] = deque()  # yielded, and not yet in a batch that arrived

    def __iter__(self) -> Iterator[int]:
        self.pending.clear()
        start = 0 if self.endless else self.epoch * self.dataset.size
        for j in count(self.first) if self.endless else range(self.first, self.length):
            position = start + j * self.world + self.rank
            self.pending.append(position)
            yield position

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class _From(BatchSampler):
    """A batch sampler from some batch on, such as one by aspect ratio: a function of what it saw.

    The batches before are composed again, without loading an image. Every epoch begins with what
    the sampler held at first: the loop takes no more batches than there are, so one that keeps
    samples in buckets does not come to where it would empty them.
    """

    def __init__(self, inner: BatchSampler) -> None:
        self.inner, self.first = inner, 0
        held = {k: v for k, v in vars(inner).items() if isinstance(v, list | dict | set | deque)}
        self.held = plain_part(held, '')
        self.pending: deque[int] = deque()

    @property
    def sampler(self) -> Sampler:
        return self.inner.sampler

    @property
    def batch_size(self) -> int:
        return self.inner.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        self.pending.clear()
        vars(self.inner).update(deepcopy(self.held))
        for number, batch in enumerate(self.inner):
            self.sampler.pending.clear()
            if number >= self.first:
                self.pending += batch
                yield batch

    def __len__(self) -> int:
        return len(self.inner)


class Batches:
    """The batches of a training from a step on, and what is on its way when a worker dies.

    Attributes:
        loader: the data loader.
        exact: False where a sampler keeps a state of its own.
    """

    def __init__(self, loader: DataLoader, seed: int) -> None:
        custom = type(loader.batch_sampler) is not BatchSampler
        sampler = loader.batch_sampler.sampler if custom else loader.sampler
        self.exact = type(sampler) in (DefaultSampler, InfiniteSampler)
        self.kind = type(sampler).__name__
        self.loader = _positioned(loader, sampler, custom, seed) if self.exact else loader
        self._iterator = None
        self._at = 0, 0

    def start(self, epoch: int, batch: int) -> None:
        """Go to a batch of an epoch; endless samplers count all in epoch 0."""
        self._iterator = None
        self._at = epoch, batch
        if not self.exact:
            if hasattr(self._sampler, 'set_epoch'):
                self._sampler.set_epoch(epoch)
            return
        self._sampler.epoch = epoch
        if isinstance(self.loader.batch_sampler, _From):
            self.loader.batch_sampler.first = batch
        else:
            self._sampler.first = batch * self.loader.batch_size

    @property
    def _sampler(self) -> Sampler:
        return getattr(self.loader.batch_sampler, 'sampler', self.loader.sampler)

    def skip_iter(self, steps: int) -> None:
        """Begin behind so many steps; what `IterBasedTrainLoop` calls when it resumes."""
        endless = isinstance(self._sampler, InfiniteSampler) or (
            self.exact and self._sampler.endless
        )
        self.start(*((0, steps) if endless else divmod(steps, len(self.loader))))

    def __next__(self):
        """The next batch, through all epochs."""
        batch = self.next_of_epoch()
        if batch is None:
            self.start(self._at[0] + 1, 0)
            batch = self.next_of_epoch()
        return batch

    def next_of_epoch(self):
        """The next batch; None behind the last of an epoch."""
        if self._iterator is None:
            self._iterator = iter(self.loader)
            if not self.exact:
                for _ in range(self._at[1]):
                    next(self._iterator, None)
        try:
            batch = next(self._iterator, None)
        except MmattnError as error:
            text = str(error).strip()
            if 'Original Traceback' not in text:
                raise
            raise type(error)(text.splitlines()[-1].split(': ', 1)[-1]) from error  # of a worker
        if batch is not None and self.exact:
            self._arrived(batch)
        return batch

    @property
    def _pending(self) -> deque[int]:
        batches = self.loader.batch_sampler
        return (batches if isinstance(batches, _From) else self._sampler).pending

    def _arrived(self, batch) -> None:
        pending = self._pending
        for _ in range(min(len(pending), _length(batch))):
            pending.popleft()

    def explained(self, error: BaseException) -> MmattnError | None:
        """What the death of a data worker means to the user; None if it is something else."""
        text = str(error)
        if re.search('Bus error|shared memory|No space left.*torch_', text):
            return WriteError(
                f'shared memory too small: have {_shared_memory()}. Give the container more with '
                '--shm-size, or set train_dataloader.num_workers=0.'
            )
        died = re.search(r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)', text)
        if not died:
            return None
        pids = {int(pid) for pid in died[1].split(',')}
        workers = [w for w in getattr(self._iterator, '_workers', []) if w.pid in pids]
        names = [_name(self.loader.dataset, p) for p in self._pending if workers and self.exact]
        shown = ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')
        codes = [w.exitcode for w in workers if (w.exitcode or 0) < 0]
        how = signal.Signals(-codes[0]).name if codes else 'unexpectedly'
        return DataError(
            f'a data worker died ({how}) while loading '
            f'{f"one of the samples {shown}" if names else "samples"}. Look at them with '
            'tools/check_data.py, or set num_workers=0 of the dataloader to see where it dies.'
        )

    def close(self) -> None:
        """End the workers: they ignore the signals by which others would end them."""
        end_workers(self._iterator or getattr(self.loader, '_iterator', None))
        self._iterator = None


def end_workers(iterator) -> None:
    if hasattr(iterator, '_shutdown_workers'):
        iterator._shutdown_workers()


def _length(batch) -> int:
    """Samples in a batch as mmengine's functions collate them."""
    while isinstance(batch, dict):
        batch = next(iter(batch.values()))
    return len(batch)


def _name(dataset: Positioned, position: int) -> str:
    try:
        info = dataset.get_data_info(position)
    except AttributeError:  # a data set that is none of mmengine's
        return str(dataset.index(position))
    return str(info.get('img_id', info.get('img_path', info.get('sample_idx'))))


def _of_a_sample(error: Exception, dataset: Positioned, position: int) -> DataError | None:
    """What a step of the pipeline raised on a sample; None if that is said elsewhere."""
    text = str(error).strip()
    elsewhere = isinstance(error, MmattnError | MemoryError | OSError | torch.AcceleratorError)
    if elsewhere or 'failed to load image' in text or "can't allocate memory" in text:
        return None
    why = text.splitlines()[-1].rstrip('.') if text else 'no message'
    return DataError(
        f'sample {_name(dataset, position)} cannot be loaded: {type(error).__name__}: {why}. Look '
        'at it with tools/check_data.py, and at the steps of the pipeline.'
    )


def _shared_memory() -> str:
    try:
        return f'{shutil.disk_usage("/dev/shm").total / 1e6:.0f} MB'
    except OSError:
        return 'an unknown size'


def _positioned(loader: DataLoader, sampler: Sampler, custom: bool, seed: int) -> DataLoader:
    """The same data loader over positions."""
    rank, world = get_dist_info()
    total, endless = len(loader.dataset), isinstance(sampler, InfiniteSampler)
    filled = not endless and sampler.round_up
    size = -(-total // world) * world if filled else total
    length = total if endless else -(-(size - (0 if filled else rank)) // world)
    dataset = Positioned(loader.dataset, seed, sampler.shuffle, size)
    positions = Positions(dataset, endless, length)
    if custom:
        loader.batch_sampler.sampler = positions
        batches = dict(batch_sampler=_From(loader.batch_sampler))
    else:
        batches = dict(sampler=positions, batch_size=loader.batch_size, drop_last=loader.drop_last)
    same = 'num_workers', 'collate_fn', 'pin_memory', 'timeout', 'worker_init_fn', 'generator'
    same += 'multiprocessing_context', 'prefetch_factor', 'persistent_workers'
    return DataLoader(dataset, **batches, **{name: getattr(loader, name) for name in same})


class EpochLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs that can begin within one."""

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        first = self._iter - self._epoch * len(self.dataloader)
        self.batches.start(self._epoch, first)
        for index in range(first, len(self.dataloader)):
            self.run_iter(index, self.batches.next_of_epoch())
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


class IterLoop(IterBasedTrainLoop):
    """mmengine's loop over iterations; its batches are `Batches`."""

    @property
    def batches(self) -> Batches:
        return self.dataloader_iterator

    @batches.setter
    def batches(self, value: Batches) -> None:
        self.dataloader_iterator = value


LOOPS = {'EpochBasedTrainLoop': EpochLoop, 'IterBasedTrainLoop': IterLoop}


# ---- workers -----------------------------------------------------------------------------------
def start_worker(worker_id: int, then=None) -> None:
    """Let a data worker outlive the signals that its group gets: the step is to be finished."""
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGUSR1:
        signal.signal(number, signal.SIG_IGN)
    if then:
        then(worker_id)


def loader_arguments(cfg: dict, seed: int | None) -> dict:
    """A dataloader's config with a generator of its own and workers that ignore signals."""
    from mmengine.registry import FUNCTIONS

    then = cfg.get('worker_init_fn')
    if then:
        then = dict(then)
        kind = then.pop('type')
        then = partial(FUNCTIONS.get(kind) if isinstance(kind, str) else kind, **then)
    elif seed is not None:
        then = partial(
            engine_worker_init,
            num_workers=cfg.get('num_workers', 0),
            rank=get_dist_info()[0],
            seed=seed,
            disable_subprocess_warning=cfg.get('disable_subprocess_warning', False),
        )
    cfg = {k: v for k, v in cfg.items() if k != 'disable_subprocess_warning'}
    cfg['worker_init_fn'] = dict(type=start_worker, then=then)
    if cfg.get('batch_sampler'):
        cfg.setdefault('batch_size', None)  # a batch sampler may have it
    cfg.setdefault('generator', torch.Generator())
    return cfg


# ---- the generators of the network -------------------------------------------------------------
def snapshot() -> Tensor:
    """The state of all generators of this process as bytes, in a row."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    parts = [
        np.array([version, *words], np.int64),
        np.array([gauss is not None, gauss or 0], np.float64),
        keys.astype(np.int64),
        np.array([position, has_gauss], np.int64),
        np.array([cached], np.float64),
    ]
    rows = [torch.from_numpy(np.frombuffer(part.tobytes(), np.uint8).copy()) for part in parts]
    rows.append(torch.get_rng_state())
    if torch.cuda.is_available():
        rows.append(torch.cuda.get_rng_state())
    return torch.cat(rows)


def restore(row: Tensor) -> None:
    """Put back what `snapshot` gave."""
    data, at = row.cpu().numpy().tobytes(), 0

    def take(length: int, dtype) -> np.ndarray:
        nonlocal at
        found = np.frombuffer(data, dtype, length, at)
        at += found.nbytes
        return found

    version, *words = take(626, np.int64).tolist()
    has, gauss = take(2, np.float64).tolist()
    random.setstate((version, tuple(words), gauss if has else None))
    keys = take(624, np.int64).astype(np.uint32)
    position, has_gauss = take(2, np.int64).tolist()
    np.random.set_state(('MT19937', keys, position, has_gauss, take(1, np.float64).item()))
    size = torch.get_rng_state().numel()
    # copies: a view into the row with an offset would crash torch
    torch.set_rng_state(torch.from_numpy(take(size, np.uint8).copy()))
    if torch.cuda.is_available() and at < len(data):
        torch.cuda.set_rng_state(torch.from_numpy(take(len(data) - at, np.uint8).copy()))


def waiting_gradients(optim_wrapper: OptimWrapper, model: nn.Module) -> dict[str, Tensor]:
    """Those that accumulate for an optimizer's step to come, as at the end of an epoch.

    To be called by all processes.

    Returns:
        name of the parameter -> (processes, *its shape).
    """
    if optim_wrapper.should_update():
        return {}
    found = {}
    for name, value in model.named_parameters():
        if value.grad is None and (get_dist_info()[1] == 1 or not value.requires_grad):
            continue
        gradient = torch.zeros_like(value) if value.grad is None else value.grad
        found[name] = torch.stack([row.cpu() for row in all_gather(gradient)])
    return found


class RandomnessHook(Hook):
    """Takes the states of the generators for a checkpoint, and puts them back when one is resumed.

    Attributes:
        pending: rows of a checkpoint, until the first step.
        gradients: those that wait in it, until then.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.pending: Tensor | None = None
        self.gradients: dict[str, Tensor] = {}
        self.started = False
        self._held: Tensor | None = None  # rows of before a validation

    def rows(self) -> Tensor:
        """(processes, bytes); to be called by all of them."""
        if self._held is not None:
            return self._held
        return torch.stack([row.cpu() for row in all_gather(snapshot())])

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:
            self.pending = checkpoint.get('rng')
            self.gradients = checkpoint.get('gradients', {})

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.started:
            return
        self.started = True
        rank, world = get_dist_info()
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for name, value in model.named_parameters() if self.gradients else ():
            if name in self.gradients:
                rows = self.gradients[name]
                value.grad = rows[rank % len(rows)].to(value)
        self.gradients = {}
        if self.pending is not None:
            restore(self.pending[rank % len(self.pending)].clone())
        elif world > 1:  # else all would drop out the same
            seed = key(runner.data_seed, 'rank', rank)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
        self.pending = None

    def after_train(self, runner) -> None:
        if self.pending is not None:  # the resumed run had come to its end
            restore(self.pending[get_dist_info()[0] % len(self.pending)].clone())

    def before_val(self, runner) -> None:
        """A validation draws nothing from the training, and sees rank 0's buffers: those saved."""
        for buffer in runner.model.buffers() if get_dist_info()[1] > 1 else ():
            broadcast(buffer)
        if self.pending is not None:  # of a resumed run that has not made a step
            self._held = self.pending
        else:
            self._held = self.rows()

    def after_val(self, runner) -> None:
        if self._held is not None and self._held is not self.pending:
            restore(self._held[get_dist_info()[0]].clone())
        self._held = None
