"""A scratch runner: a copy of a runner with its own network, writing into another folder."""

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
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as EngineRunner
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from mmengine.utils import ManagerMixin
from torch import nn
from torch.utils.data import DataLoader

from mmattn.engine.model_wrappers import copy_model, unwrap_ddp
from mmattn.engine.out_of_memory import is_out_of_memory
from mmattn.engine.resume.rng import get_rng_state, set_rng_state

from .config_errors import PACKAGES, as_config_error

_LOCAL_BACKENDS = ('LocalVisBackend', 'TensorboardVisBackend')  # write into the work dir only
_SHARED = ('data_bytes', 'data_address', 'data_list')  # large attributes of a data set, read-only


def copy_network(runner) -> nn.Module | None:
    """A copy of a runner's network that shares nothing with it; None if it cannot be copied.

    A test does not change the network, so it gets the network itself.
    """
    model = unwrap_ddp(runner.model)
    if not runner.has_train_loop:
        return model
    try:
        copied = copy_model(model)
    except (RuntimeError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        runner.logger.info(f'no rehearsal: {type(model).__name__} cannot be copied: {error}')
        return None
    if runner.cfg.get('activation_checkpointing'):
        turn_on_activation_checkpointing(copied, runner.cfg.activation_checkpointing)
    return copied


def build_scratch_runner(runner, network: nn.Module, folder: str):
    """A runner like another, with a network of its own; its loops and optimizer are built.

    Args:
        runner: runner of `mmattn.engine.runner` whose loops are built.
        network: network on its device, see `copy_network`.
        folder: folder for everything that is written.

    Raises:
        UsageError: a part of the config cannot be built.
    """
    cfg = copy.deepcopy(runner.cfg)
    cfg.work_dir, cfg.load_from, cfg.resume = folder, None, False
    cfg.experiment_name = f'{runner.experiment_name}_rehearsal'
    if cfg.get('visualizer'):
        cfg.visualizer.name = cfg.experiment_name
        backends = cfg.visualizer.get('vis_backends') or []
        cfg.visualizer.vis_backends = [b for b in backends if _type_name(b) in _LOCAL_BACKENDS]
    keys = ['default_hooks', 'custom_hooks', 'launcher', 'env_cfg', 'log_processor', 'visualizer']
    keys += ['default_scope', 'experiment_name']
    arguments = dict(log_level='WARNING')
    training = runner.has_train_loop
    if training:
        keys += ['train_cfg', 'optim_wrapper', 'param_scheduler']
        arguments['train_dataloader'] = _copy_loader(runner.train_dataloader)
    mode = 'val' if training else 'test'
    evaluating = isinstance(getattr(runner, f'_{mode}_loop'), BaseLoop)
    if evaluating:
        loop = getattr(runner, f'{mode}_loop')
        keys.append(f'{mode}_cfg')
        arguments[f'{mode}_dataloader'] = _copy_loader(loop.dataloader)
        arguments[f'{mode}_evaluator'] = _copy_evaluator(loop.evaluator, folder)
    arguments |= {key: cfg[key] for key in keys if cfg.get(key) is not None}
    cls = type('ScratchRunner', (_ScratchRunner, type(runner)), {})
    with as_config_error(runner, 'the hooks, the visualizer or the log processor'):
        scratch = cls(
            model=network, work_dir=folder, randomness=dict(seed=runner.seed), cfg=cfg, **arguments
        )
    scratch.original, scratch.fingerprint = runner, runner.fingerprint
    for name in ['train'] * training + [mode] * evaluating:
        with as_config_error(scratch, f'{name}_cfg'):
            getattr(scratch, f'{name}_loop')
    if training:
        scratch.optim_wrapper = scratch.build_optim_wrapper(scratch.optim_wrapper)
        if scratch.param_schedulers is not None:
            scratch.param_schedulers = scratch.build_param_scheduler(scratch.param_schedulers)
        scratch.optim_wrapper.initialize_count_status(
            scratch.model, 0, scratch.train_loop.max_iters
        )
    return scratch


class _ScratchRunner:
    """Mixin of a scratch runner's class: what it does differently from the original runner.

    Attributes:
        original: the original runner.
    """

    original = None

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in [*logger.handlers]:
            if not isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
        return logger

    def build_train_loop(self, loop):
        # not ours, which makes batches resumable
        return EngineRunner.build_train_loop(self, loop)

    def build_optim_wrapper(self, optim_wrapper):
        # not ours, which checks for non-finite values
        return EngineRunner.build_optim_wrapper(self, optim_wrapper)

    def wrap_model(self, model_wrapper_cfg, model: nn.Module) -> nn.Module:
        return model  # no exchange of gradients

    def register_hooks(self, default_hooks=None, custom_hooks=None) -> None:
        super().register_hooks(default_hooks, custom_hooks)
        self._hooks = [hook for hook in self._hooks if _is_safe_to_rehearse(hook)]
        for hook in self._hooks:
            if isinstance(hook, LoggerHook) or getattr(hook, 'draw', False):
                hook.interval = 1
            if getattr(hook, 'show', False):
                hook.show = False
            for name in 'out_dir', 'test_out_dir':
                if getattr(hook, name, None):
                    folder = Path(self.work_dir) / name
                    setattr(hook, name, None if isinstance(hook, CheckpointHook) else folder)

    def load_or_resume(self) -> None:
        pass

    def dump_config(self) -> None:
        pass

    def _log_env(self, env_cfg: dict) -> None:
        pass

    def write_checkpoint(self, path: Path, content: dict, facts: dict) -> None:
        """Write a checkpoint without the values of its tensors."""
        super().write_checkpoint(path, _empty_tensors(content), facts)


def _is_safe_to_rehearse(hook) -> bool:
    """Whether a hook is known to act on the work dir alone; third-party hooks are not."""
    package = type(hook).__module__.split('.')[0]
    return package in PACKAGES and not isinstance(hook, ProfilerHook)


def _empty_tensors(value):
    """A nested value with every tensor replaced by an empty one."""
    if isinstance(value, torch.Tensor):
        return value.new_empty(0)
    if isinstance(value, dict):
        return type(value)((k, _empty_tensors(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_empty_tensors(v) for v in value)
    return value


class _Loader(DataLoader):
    """A data loader that reports the length of another.

    Attributes:
        length: batches per epoch of the other.
    """

    length = 0

    def __len__(self) -> int:
        return self.length


def _copy_loader(original: DataLoader) -> DataLoader:
    """A loader over a copy of the data set, as transforms may keep a state."""
    memo = {}
    for dataset in _nested_datasets(original.dataset):
        for name in _SHARED:
            value = dataset.__dict__.get(name)
            memo[id(value)] = value
    loader = _Loader(
        copy.deepcopy(original.dataset, memo),
        batch_size=original.batch_size or getattr(original.batch_sampler, 'batch_size', 1),
        collate_fn=original.collate_fn,
    )
    loader.length = len(original)
    return loader


def _nested_datasets(dataset) -> Iterator:
    """A data set and those that it wraps."""
    yield dataset
    for name in 'inner', 'dataset', '_dataset':
        if hasattr(dataset.__dict__.get(name), '__dict__'):
            yield from _nested_datasets(dataset.__dict__[name])
    for inner in dataset.__dict__.get('datasets', ()):
        yield from _nested_datasets(inner)


def _copy_evaluator(original, folder: str):
    """A copy of an evaluator with the same annotations that writes into another folder."""
    evaluator = copy.copy(original)
    evaluator.metrics = [copy.copy(metric) for metric in original.metrics]
    for index, metric in enumerate(evaluator.metrics):
        metric.results = []
        for name in 'outfile_prefix', 'output_dir', 'out_file_path':
            if getattr(metric, name, None):
                suffix = Path(str(getattr(metric, name))).suffix
                setattr(metric, name, str(Path(folder) / f'{name}_{index}{suffix}'))
    return evaluator


@contextlib.contextmanager
def restore_state(runner) -> Iterator[None]:
    """Restore the global and the runner's state after the block, and suppress its output.

    Restored are random number generators, the managers of loggers, message hubs and visualizers,
    and the network's buffers, gradients and training mode.
    """
    rng_state = get_rng_state()
    model, training = runner.model, runner.model.training
    buffers = [(b, b.clone()) for b in model.buffers()]
    without_grad = [p for p in model.parameters() if p.grad is None]
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
        for parameter in without_grad:
            parameter.grad = None
        model.train(training)
        set_rng_state(rng_state)
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def close_scratch_runner(scratch) -> None:
    """Close the log files of a scratch runner."""
    scratch.visualizer.close()
    for handler in [*scratch.logger.handlers]:
        scratch.logger.removeHandler(handler)
        handler.close()


def _subclasses(cls: type) -> Iterator[type]:
    yield cls
    for child in cls.__subclasses__():
        yield from _subclasses(child)


def _type_name(cfg: dict) -> str:
    """Class name of a config, without module or scope."""
    cls = cfg.get('type', '')
    return cls.split('.')[-1] if isinstance(cls, str) else cls.__name__
