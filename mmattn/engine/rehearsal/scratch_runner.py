"""A runner that stands in for another: over a copy of its network, writing into another folder."""

import contextlib
import copy
import gc
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.hooks import CheckpointHook, LoggerHook, ProfilerHook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as EngineRunner
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from mmengine.utils import ManagerMixin
from torch import nn
from torch.utils.data import DataLoader

from mmattn.engine.out_of_memory import is_out_of_memory
from mmattn.engine.resume.rng import get_rng_state, set_rng_state

from .config_errors import PACKAGES, part

_LOCAL = ('LocalVisBackend', 'TensorboardVisBackend')  # write into the work dir alone
_LARGE = ('data_bytes', 'data_address', 'data_list')  # of a data set, and never changed


def copy_network(runner) -> nn.Module | None:
    """A copy of the network that shares nothing with it; None if there can be none.

    A test changes nothing in the network, so it is its own.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if not runner.trains:
        return model
    try:
        copied = copy.deepcopy(model)
    except (RuntimeError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        runner.logger.info(f'no rehearsal: {type(model).__name__} cannot be copied: {error}')
        return None
    for module in copied.modules():
        wrapped = getattr(module.__dict__.get('forward'), '__wrapped__', None)
        if getattr(wrapped, '__self__', module) is not module:
            del module.forward  # a wrapper around the forward of the original
    if runner.cfg.get('activation_checkpointing'):
        turn_on_activation_checkpointing(copied, runner.cfg.activation_checkpointing)
    return copied


def stand_in(runner, network: nn.Module, folder: str):
    """A runner like another over a network of its own, with what its loops need built.

    Args:
        runner: of `mmattn.engine.runner`; its loops are built.
        network: on its device.
        folder: for everything that is written.

    Raises:
        UsageError: a part of the config cannot be built.
    """
    cfg = copy.deepcopy(runner.cfg)
    cfg.work_dir, cfg.load_from, cfg.resume = folder, None, False
    cfg.experiment_name = f'{runner.experiment_name}_rehearsal'
    if cfg.get('visualizer'):
        cfg.visualizer.name = cfg.experiment_name
        backends = cfg.visualizer.get('vis_backends') or []
        cfg.visualizer.vis_backends = [b for b in backends if _kind(b) in _LOCAL]
    keys = ['default_hooks', 'custom_hooks', 'launcher', 'env_cfg', 'log_processor', 'visualizer']
    keys += ['default_scope', 'experiment_name']
    given = dict(log_level='WARNING')
    training = runner.trains
    if training:
        keys += ['train_cfg', 'optim_wrapper', 'param_scheduler']
        given['train_dataloader'] = _loader(runner.train_dataloader)
    mode = 'val' if training else 'test'
    evaluating = isinstance(getattr(runner, f'_{mode}_loop'), BaseLoop)
    if evaluating:
        loop = getattr(runner, f'{mode}_loop')
        keys.append(f'{mode}_cfg')
        given[f'{mode}_dataloader'] = _loader(loop.dataloader)
        given[f'{mode}_evaluator'] = _evaluator(loop.evaluator, folder)
    given |= {key: cfg[key] for key in keys if cfg.get(key) is not None}
    kind = type('StandIn', (_StandIn, type(runner)), {})
    with part(runner, 'the hooks, the visualizer or the log processor'):
        double = kind(
            model=network, work_dir=folder, randomness=dict(seed=runner.seed), cfg=cfg, **given
        )
    double.real, double.course = runner, runner.course
    for name in ['train'] * training + [mode] * evaluating:
        with part(double, f'{name}_cfg'):
            getattr(double, f'{name}_loop')
    if training:
        double.optim_wrapper = double.build_optim_wrapper(double.optim_wrapper)
        if double.param_schedulers is not None:
            double.param_schedulers = double.build_param_scheduler(double.param_schedulers)
        double.optim_wrapper.initialize_count_status(double.model, 0, double.train_loop.max_iters)
    return double


class _StandIn:
    """What differs in the class of the runner.

    Attributes:
        real: the runner that it stands in for.
    """

    real = None

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in [*logger.handlers]:
            if not isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
        return logger

    def build_train_loop(self, loop):
        return EngineRunner.build_train_loop(self, loop)  # ours would put batches in order

    def build_optim_wrapper(self, optim_wrapper):
        return EngineRunner.build_optim_wrapper(self, optim_wrapper)  # ours would watch it

    def wrap_model(self, model_wrapper_cfg, model: nn.Module) -> nn.Module:
        return model  # gradients stay in this process

    def register_hooks(self, default_hooks=None, custom_hooks=None) -> None:
        super().register_hooks(default_hooks, custom_hooks)
        self._hooks = [hook for hook in self._hooks if _acts_on_the_work_dir(hook)]
        for hook in self._hooks:
            if isinstance(hook, LoggerHook) or getattr(hook, 'draw', False):
                hook.interval = 1
            for name in 'out_dir', 'test_out_dir':
                if getattr(hook, name, None):
                    own = None if isinstance(hook, CheckpointHook) else Path(self.work_dir) / name
                    setattr(hook, name, own)

    def load_or_resume(self) -> None:
        pass

    def dump_config(self) -> None:
        pass

    def _log_env(self, env_cfg: dict) -> None:
        pass

    def write_checkpoint(self, path: Path, content: dict, facts: dict) -> None:
        """Write all but the values of the tensors."""
        super().write_checkpoint(path, _emptied(content), facts)


def _acts_on_the_work_dir(hook) -> bool:
    """Whether a hook is one of the packages'; what others do is not known."""
    package = type(hook).__module__.split('.')[0]
    return package in PACKAGES and not isinstance(hook, ProfilerHook)


def _emptied(value):
    """The same structure with empty tensors."""
    if isinstance(value, torch.Tensor):
        return value.new_empty(0)
    if isinstance(value, dict):
        return type(value)((k, _emptied(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_emptied(v) for v in value)
    return value


class _Loader(DataLoader):
    """A loader as long as another."""

    length = 0

    def __len__(self) -> int:
        return self.length


def _loader(real: DataLoader) -> DataLoader:
    """A loader over a copy of a data set, whose transforms may remember what they have seen."""
    memo = {}
    for dataset in _data_sets(real.dataset):
        for name in _LARGE:
            value = dataset.__dict__.get(name)
            memo[id(value)] = value
    loader = _Loader(
        copy.deepcopy(real.dataset, memo),
        batch_size=real.batch_size or getattr(real.batch_sampler, 'batch_size', 1),
        collate_fn=real.collate_fn,
    )
    loader.length = len(real)
    return loader


def _data_sets(dataset) -> Iterator:
    """A data set and those inside it."""
    yield dataset
    for name in 'inner', 'dataset', '_dataset':
        if hasattr(dataset.__dict__.get(name), '__dict__'):
            yield from _data_sets(dataset.__dict__[name])
    for inner in dataset.__dict__.get('datasets', ()):
        yield from _data_sets(inner)


def _evaluator(real, folder: str):
    """A copy of an evaluator, over the same annotations, that writes into another folder."""
    evaluator = copy.copy(real)
    evaluator.metrics = [copy.copy(metric) for metric in real.metrics]
    for index, metric in enumerate(evaluator.metrics):
        metric.results = []
        for name in 'outfile_prefix', 'output_dir', 'out_file_path':
            if getattr(metric, name, None):
                ending = Path(str(getattr(metric, name))).suffix
                setattr(metric, name, str(Path(folder) / f'{name}_{index}{ending}'))
    return evaluator


@contextlib.contextmanager
def nothing_left(runner) -> Iterator[None]:
    """Put back afterwards what a process shares: generators, current logger, what is printed."""
    randomness = get_rng_state()
    model, mode = runner.model, runner.model.training
    buffers = [(b, b.clone()) for b in model.buffers()]
    without = [p for p in model.parameters() if p.grad is None]
    managers = {cls: cls._instance_dict.copy() for cls in _subclasses(ManagerMixin)}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        for cls in _subclasses(ManagerMixin):
            cls._instance_dict.clear()
            cls._instance_dict.update(managers.get(cls, {}))
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for parameter in without:
            parameter.grad = None
        model.train(mode)
        set_rng_state(randomness)
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def close(double) -> None:
    """Close the files of a stand-in."""
    double.visualizer.close()
    for handler in [*double.logger.handlers]:
        double.logger.removeHandler(handler)
        handler.close()


def _subclasses(cls: type) -> Iterator[type]:
    yield cls
    for child in cls.__subclasses__():
        yield from _subclasses(child)


def _kind(cfg: dict) -> str:
    """The bare name of a `type`."""
    kind = cfg.get('type', '')
    return kind.split('.')[-1] if isinstance(kind, str) else kind.__name__
