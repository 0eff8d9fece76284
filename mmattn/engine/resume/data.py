"""The batches of a training as a function of seed and step, so that a run resumes bit for bit.

Which images a step sees is arithmetic on its number: the sampler yields positions that count
through all epochs, and the data set turns a position into (epoch, slot) and that into an index.
Random transforms of an image draw from generators that are seeded for this slot alone and restored
after it, so that workers, prefetching and restarts make no difference, and no epoch repeats
another. The data loader draws from a generator of its own. What remains, the randomness of the
network, is stored in the checkpoint for each process and restored right before the first step of a
resumed run (see `RandomnessHook`).
"""

import re
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from itertools import count
from typing import Any

import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dataset.utils import worker_init_fn as engine_worker_init
from mmengine.dist import get_dist_info
from mmengine.registry import FUNCTIONS
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from mmattn.checkpoint.plain_values import plain_items
from mmattn.config import safe_files
from mmattn.datasets.fast_pipeline import use_fast_steps
from mmattn.errors import DataError, MmattnError, WriteError
from mmattn.text import some
from mmattn.torch_compat import AcceleratorError, Generator

from ..signals import kill_children_at_exit
from ..workers import count_workers
from .rng import derive_seed, seeded

_SHOWN = 12  # samples named in an error
_COLLATES = ('pseudo_collate', 'default_collate')  # mmengine's, which leave label maps as they are


class ResumableDataset(Dataset):
    """A data set indexed by position: epoch * size + slot.

    Attributes that it does not have are looked up in the inner data set.

    Args:
        inner: data set of any kind.
        seed: seed for the order of every epoch and for the transforms.
        shuffle: False keeps the order of the inner data set.
        size: slots per epoch, including those that pad it to a multiple of the world size.
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
    def pipeline(self, value) -> None:  # set by hooks that switch transforms during a training
        self.inner.pipeline = value

    def index(self, position: int) -> int:
        """The index into the inner data set at a position."""
        epoch, slot = divmod(position, self.size)
        slot %= len(self.inner)
        return self._order(epoch)[slot] if self.shuffle else slot

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            if len(self._orders) > 1:  # keep two: a batch may span two epochs
                del self._orders[min(self._orders)]
            generator = torch.Generator().manual_seed(derive_seed(self.seed, 'order', epoch))
            self._orders[epoch] = torch.randperm(len(self.inner), generator=generator).tolist()
        return self._orders[epoch]

    def get_data_info(self, position: int) -> dict:
        """Facts about a sample that batch samplers use, such as width and height."""
        return self.inner.get_data_info(self.index(position))

    def __getitem__(self, position: int) -> Any:
        with seeded(derive_seed(self.seed, 'sample', *divmod(position, self.size))):
            try:
                return self.inner[self.index(position)]
            except Exception as error:
                sample_error = _sample_error(error, self, position)
                if sample_error is None:
                    raise
                raise sample_error from error


class ResumableSampler(Sampler):
    """The positions of this process: every `world`-th one.

    Args:
        dataset: data set that the positions are for.
        endless: one stream through all epochs, as `InfiniteSampler`; else one epoch at a time.
        length: positions per epoch in this process.

    Attributes:
        epoch: the epoch to yield, unless endless.
        first: positions to skip, counted in this process.
        in_flight: positions yielded whose batch has not arrived yet.
    """

    def __init__(self, dataset: ResumableDataset, endless: bool, length: int) -> None:
        self.dataset, self.endless, self.length = dataset, endless, length
        self.rank, self.world = get_dist_info()
        self.epoch = self.first = 0
        self.in_flight: deque[int] = deque()

    def __iter__(self) -> Iterator[int]:
        self.in_flight.clear()
        start = 0 if self.endless else self.epoch * self.dataset.size
        for j in count(self.first) if self.endless else range(self.first, self.length):
            position = start + j * self.world + self.rank
            self.in_flight.append(position)
            yield position

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class ResumableBatchSampler(BatchSampler):
    """A batch sampler, such as one by aspect ratio, that can start at any batch.

    The batches before the first are composed again without loading an image. Every epoch starts
    from the initial state of the inner sampler: the loop takes no more batches than `len`, so a
    sampler that collects samples in buckets does not reach the point where it would empty them.

    Args:
        inner: batch sampler whose batches depend on its positions and its own containers alone.

    Attributes:
        first: batches to skip.
        in_flight: positions yielded whose batch has not arrived yet.
    """

    def __init__(self, inner: BatchSampler) -> None:
        self.inner, self.first = inner, 0
        containers = (list, dict, set, deque)
        state = {k: v for k, v in vars(inner).items() if isinstance(v, containers)}
        self.initial_state = plain_items(state, '')
        self.in_flight: deque[int] = deque()

    @property
    def sampler(self) -> Sampler:
        return self.inner.sampler

    @property
    def batch_size(self) -> int:
        return self.inner.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        self.in_flight.clear()
        vars(self.inner).update(deepcopy(self.initial_state))
        for number, batch in enumerate(self.inner):
            self.sampler.in_flight.clear()
            if number >= self.first:
                self.in_flight += batch
                yield batch

    def __len__(self) -> int:
        return len(self.inner)


class ResumableLoader:
    """The batches of a training from any step on.

    It also tracks in-flight samples, so that a worker crash can name them.

    Args:
        loader: data loader of the config.
        seed: seed shared by all processes.

    Attributes:
        loader: the data loader over positions; the given one if not deterministic.
        deterministic: False if the sampler keeps a state of its own, which cannot be resumed.
        sampler_name: class of the sampler.
    """

    def __init__(self, loader: DataLoader, seed: int) -> None:
        has_batch_sampler = type(loader.batch_sampler) is not BatchSampler
        sampler = loader.batch_sampler.sampler if has_batch_sampler else loader.sampler
        self.deterministic = type(sampler) in (DefaultSampler, InfiniteSampler)
        self.sampler_name = type(sampler).__name__
        self.loader = loader
        if self.deterministic:
            self.loader = _resumable_loader(loader, sampler, has_batch_sampler, seed)
        self._iterator = None
        self._start = 0, 0  # epoch, batch

    def start(self, epoch: int, batch: int) -> None:
        """Go to a batch of an epoch; endless samplers count all batches in epoch 0."""
        self._iterator = None
        self._start = epoch, batch
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
        """Start after `steps` batches; `IterBasedTrainLoop` calls this when it resumes."""
        endless = isinstance(self._sampler, InfiniteSampler) or (
            self.deterministic and self._sampler.endless
        )
        self.start(*((0, steps) if endless else divmod(steps, len(self.loader))))

    def __next__(self):
        """The next batch, through all epochs."""
        batch = self.next_of_epoch()
        if batch is None:
            self.start(self._start[0] + 1, 0)
            batch = self.next_of_epoch()
        return batch

    def next_of_epoch(self):
        """The next batch; None after the last of an epoch."""
        if self._iterator is None:
            self._iterator = iter(self.loader)
            if not self.deterministic:
                for _ in range(self._start[1]):
                    next(self._iterator, None)
        try:
            batch = next(self._iterator, None)
        except MmattnError as error:
            text = str(error).strip()
            if 'Original Traceback' not in text:
                raise
            # a worker adds its traceback to the message
            raise type(error)(text.splitlines()[-1].split(': ', 1)[-1]) from error
        if batch is not None and self.deterministic:
            for _ in range(min(len(self._in_flight), _batch_length(batch))):
                self._in_flight.popleft()
        return batch

    @property
    def _in_flight(self) -> deque[int]:
        batches = self.loader.batch_sampler
        return (batches if isinstance(batches, ResumableBatchSampler) else self._sampler).in_flight

    def worker_error(self, error: BaseException) -> MmattnError | None:
        """The error for the user if a data worker died; None if `error` is something else.

        Args:
            error: what the data loader raised.
        """
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
        positions = self._in_flight if workers and self.deterministic else ()
        names = [_sample_name(self.loader.dataset, position) for position in positions]
        codes = [w.exitcode for w in workers if (w.exitcode or 0) < 0]
        how = signal.Signals(-codes[0]).name if codes else 'unexpectedly'
        return DataError(
            f'a data worker died ({how}) while loading '
            f'{f"one of the samples {some(names, _SHOWN)}" if names else "samples"}. Look at them '
            'with tools/check_data.py, or set num_workers=0 of the dataloader to see where it dies.'
        )

    def close(self) -> None:
        """End the workers, which ignore the signals that would normally end them."""
        end_workers(self._iterator or getattr(self.loader, '_iterator', None))
        self._iterator = None


def end_workers(iterator) -> None:
    """Shut down the workers of a data loader's iterator, if it has any."""
    if hasattr(iterator, '_shutdown_workers'):
        iterator._shutdown_workers()


def _batch_length(batch) -> int:
    """Samples in a batch that mmengine's functions have collated."""
    while isinstance(batch, dict):
        batch = next(iter(batch.values()))
    return len(batch)


def _sample_name(dataset: ResumableDataset, position: int) -> str:
    """Id or path of a sample; its index if the data set is not one of mmengine's."""
    try:
        info = dataset.get_data_info(position)
    except AttributeError:
        return str(dataset.index(position))
    return str(info.get('img_id', info.get('img_path', info.get('sample_idx'))))


def _sample_error(error: Exception, dataset: ResumableDataset, position: int) -> DataError | None:
    """The error that names a sample whose pipeline failed; None if `error` explains itself."""
    text = str(error).strip()
    explained = isinstance(error, MmattnError | MemoryError | OSError | AcceleratorError)
    if explained or 'failed to load image' in text or "can't allocate memory" in text:
        return None
    reason = text.splitlines()[-1].rstrip('.') if text else 'no message'
    return DataError(
        f'sample {_sample_name(dataset, position)} cannot be loaded: {type(error).__name__}: '
        f'{reason}. Look at it with tools/check_data.py, and at the steps of the pipeline.'
    )


def _shared_memory() -> str:
    try:
        return f'{shutil.disk_usage("/dev/shm").total / 1e6:.0f} MB'
    except OSError:
        return 'an unknown size'


def _resumable_loader(
    loader: DataLoader, sampler: Sampler, has_batch_sampler: bool, seed: int
) -> DataLoader:
    """The same data loader over positions.

    Args:
        loader: data loader of the config.
        sampler: its sampler, a `DefaultSampler` or `InfiniteSampler`.
        has_batch_sampler: whether the config names a batch sampler.
        seed: seed shared by all processes.
    """
    rank, world = get_dist_info()
    total, endless = len(loader.dataset), isinstance(sampler, InfiniteSampler)
    padded = not endless and sampler.round_up
    size = -(-total // world) * world if padded else total
    length = total if endless else -(-(size - (0 if padded else rank)) // world)
    dataset = ResumableDataset(loader.dataset, seed, sampler.shuffle, size)
    positions = ResumableSampler(dataset, endless, length)
    if has_batch_sampler:
        loader.batch_sampler.sampler = positions
        batches = dict(batch_sampler=ResumableBatchSampler(loader.batch_sampler))
    else:
        batches = dict(sampler=positions, batch_size=loader.batch_size, drop_last=loader.drop_last)
    unchanged = 'num_workers', 'collate_fn', 'pin_memory', 'timeout', 'worker_init_fn', 'generator'
    unchanged += 'multiprocessing_context', 'prefetch_factor', 'persistent_workers'
    return DataLoader(dataset, **batches, **{name: getattr(loader, name) for name in unchanged})


# ---- workers -----------------------------------------------------------------------------------
def init_worker(worker_id: int, then: Callable[[int], None] | None = None) -> None:
    """Make a data worker ignore the signals sent to its process group: the step is to finish.

    Args:
        worker_id: number of the worker.
        then: `worker_init_fn` of the config.
    """
    safe_files.install()  # for a worker that is spawned instead of forked
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGUSR1:
        signal.signal(number, signal.SIG_IGN)
    if then:
        then(worker_id)


def prepare_dataloader_cfg(cfg: dict, seed: int | None) -> dict:
    """The config of a data loader with its own generator and workers that ignore signals.

    It has a number of workers (see `count_workers`), and a data set with faster steps.

    Args:
        cfg: config of the data loader; not changed.
        seed: seed for the workers, unless the config has a `worker_init_fn`.
    """
    kill_children_at_exit()
    workers = count_workers(cfg.get('num_workers', 'auto'))
    init = cfg.get('worker_init_fn')
    if init:
        init = dict(init)
        function = init.pop('type')
        function = FUNCTIONS.get(function) if isinstance(function, str) else function
        init = partial(function, **init)
    elif seed is not None:
        init = partial(
            engine_worker_init,
            num_workers=workers,
            rank=get_dist_info()[0],
            seed=seed,
            disable_subprocess_warning=cfg.get('disable_subprocess_warning', False),
        )
    cfg = {k: v for k, v in cfg.items() if k != 'disable_subprocess_warning'}
    cfg['num_workers'] = workers
    cfg['worker_init_fn'] = dict(type=init_worker, then=init)
    if isinstance(cfg.get('dataset'), dict):
        collate = (cfg.get('collate_fn') or {}).get('type', _COLLATES[0])
        cfg['dataset'] = use_fast_steps(cfg['dataset'], narrow_labels=collate in _COLLATES)
    if cfg.get('batch_sampler'):
        cfg.setdefault('batch_size', None)  # the batch sampler may set it
    cfg.setdefault('generator', Generator())
    return cfg
