"""Exact resume: a training is a function of its seed, its config and the number of the step.

Which images a step sees is arithmetic on its number: the sampler yields positions that count
through all epochs, and the data set makes (epoch, slot) and an index of them. What random
transforms do to an image is drawn from generators that are seeded for that slot alone and put back
behind it, so neither workers nor read-ahead nor restarts matter, and no epoch repeats another. The
data loader draws from a generator of its own. What is left, the randomness of the network, is in
the checkpoint, a row for each process, and is put back right before the first step of a resumed
run. Loops differ from mmengine's in one thing: they begin within an epoch.
"""

import re
import shutil
import signal
from collections import deque
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from itertools import count
from typing import Any

import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dataset.utils import worker_init_fn as engine_worker_init
from mmengine.dist import get_dist_info
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from mmattn.checkpoint.plain_values import plain_part
from mmattn.config import safe_files
from mmattn.errors import DataError, MmattnError, WriteError

from ..signals import end_children_at_exit
from .rng import derive_seed, seeded

_SHOWN = 12  # samples named in an error


class ResumableDataset(Dataset):
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
            generator = torch.Generator().manual_seed(derive_seed(self.seed, 'order', epoch))
            self._orders[epoch] = torch.randperm(len(self.inner), generator=generator).tolist()
        return self._orders[epoch]

    def get_data_info(self, position: int) -> dict:
        """What a batch sampler asks for, such as width and height."""
        return self.inner.get_data_info(self.index(position))

    def __getitem__(self, position: int) -> Any:
        with seeded(derive_seed(self.seed, 'sample', *divmod(position, self.size))):
            try:
                return self.inner[self.index(position)]
            except Exception as error:
                failure = _of_a_sample(error, self, position)
                if failure is None:
                    raise
                raise failure from error


class ResumableSampler(Sampler):
    """The positions of this process: every `world`-th.

    Args:
        dataset: asked for what is yielded.
        endless: one stream through all epochs, as of `InfiniteSampler`; else an epoch at a time.
        length: of an epoch, for this process.
    """

    def __init__(self, dataset: ResumableDataset, endless: bool, length: int) -> None:
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


class ResumableBatchSampler(BatchSampler):
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


class ResumableLoader:
    """The batches of a training from a step on, and what is on its way when a worker dies.

    Attributes:
        loader: the data loader.
        exact: False where a sampler keeps a state of its own.
    """

    def __init__(self, loader: DataLoader, seed: int) -> None:
        custom = type(loader.batch_sampler) is not BatchSampler
        sampler = loader.batch_sampler.sampler if custom else loader.sampler
        self.deterministic = type(sampler) in (DefaultSampler, InfiniteSampler)
        self.sampler_name = type(sampler).__name__
        self.loader = _positioned(loader, sampler, custom, seed) if self.deterministic else loader
        self._iterator = None
        self._at = 0, 0

    def start(self, epoch: int, batch: int) -> None:
        """Go to a batch of an epoch; endless samplers count all in epoch 0."""
        self._iterator = None
        self._at = epoch, batch
        if not self.deterministic:
            if hasattr(self._sampler, 'set_epoch'):
                self._sampler.set_epoch(epoch)
            return
        self._sampler.epoch = epoch
        if isinstance(self.loader.batch_sampler, ResumableBatchSampler):
            self.loader.batch_sampler.first = batch
        else:
            self._sampler.first = batch * self.loader.batch_size

    @property
    def _sampler(self) -> Sampler:
        return getattr(self.loader.batch_sampler, 'sampler', self.loader.sampler)

    def skip_iter(self, steps: int) -> None:
        """Begin behind so many steps; what `IterBasedTrainLoop` calls when it resumes."""
        endless = isinstance(self._sampler, InfiniteSampler) or (
            self.deterministic and self._sampler.endless
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
            if not self.deterministic:
                for _ in range(self._at[1]):
                    next(self._iterator, None)
        try:
            batch = next(self._iterator, None)
        except MmattnError as error:
            text = str(error).strip()
            if 'Original Traceback' not in text:
                raise
            raise type(error)(text.splitlines()[-1].split(': ', 1)[-1]) from error  # of a worker
        if batch is not None and self.deterministic:
            self._arrived(batch)
        return batch

    @property
    def _pending(self) -> deque[int]:
        batches = self.loader.batch_sampler
        return (batches if isinstance(batches, ResumableBatchSampler) else self._sampler).pending

    def _arrived(self, batch) -> None:
        pending = self._pending
        for _ in range(min(len(pending), _length(batch))):
            pending.popleft()

    def worker_error(self, error: BaseException) -> MmattnError | None:
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
        names = [
            _name(self.loader.dataset, p) for p in self._pending if workers and self.deterministic
        ]
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


def _name(dataset: ResumableDataset, position: int) -> str:
    try:
        info = dataset.get_data_info(position)
    except AttributeError:  # a data set that is none of mmengine's
        return str(dataset.index(position))
    return str(info.get('img_id', info.get('img_path', info.get('sample_idx'))))


def _of_a_sample(error: Exception, dataset: ResumableDataset, position: int) -> DataError | None:
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
    dataset = ResumableDataset(loader.dataset, seed, sampler.shuffle, size)
    positions = ResumableSampler(dataset, endless, length)
    if custom:
        loader.batch_sampler.sampler = positions
        batches = dict(batch_sampler=ResumableBatchSampler(loader.batch_sampler))
    else:
        batches = dict(sampler=positions, batch_size=loader.batch_size, drop_last=loader.drop_last)
    same = 'num_workers', 'collate_fn', 'pin_memory', 'timeout', 'worker_init_fn', 'generator'
    same += 'multiprocessing_context', 'prefetch_factor', 'persistent_workers'
    return DataLoader(dataset, **batches, **{name: getattr(loader, name) for name in same})


# ---- workers -----------------------------------------------------------------------------------
def init_worker(worker_id: int, then=None) -> None:
    """Let a data worker outlive the signals that its group gets: the step is to be finished."""
    safe_files.install()  # in a worker that was spawned, not forked
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGUSR1:
        signal.signal(number, signal.SIG_IGN)
    if then:
        then(worker_id)


def prepare_dataloader_cfg(cfg: dict, seed: int | None) -> dict:
    """A dataloader's config with a generator of its own and workers that ignore signals."""
    from mmengine.registry import FUNCTIONS

    end_children_at_exit()
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
    cfg['worker_init_fn'] = dict(type=init_worker, then=then)
    if cfg.get('batch_sampler'):
        cfg.setdefault('batch_size', None)  # a batch sampler may have it
    cfg.setdefault('generator', torch.Generator())
    return cfg
