"""A rehearsal before the first step: what the config says wrong shows now, not hours later.

A copy of the network takes one small batch forward, backward and through the optimizer; then one
validation image goes through the metrics, the rule of the best checkpoint, drawing and writing, all
in a temporary folder. Nothing is left behind: weights, statistics, random generators, logs and
message hubs are as before, so a run with a rehearsal equals one without bit for bit.
"""

import contextlib
import copy
import gc
import io
import logging
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, LoggerHook, ProfilerHook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner as EngineRunner
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from mmengine.structures import InstanceData
from mmengine.utils import ManagerMixin
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from mmattn.errors import Exit, MemoryShortage, MmattnError, UsageError, explain

from .config_keys import nearest
from .exact import restore, scoped, snapshot
from .guard import out_of_memory

_DRAWN = 8  # samples looked through for some with annotations
_MOSTLY = 0.5  # padding beyond this share of a batch is worth a warning
_OURS = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmattn')  # packages whose hooks are rehearsed
_LOCAL = ('LocalVisBackend', 'TensorboardVisBackend')  # that write into the work dir alone
# Metrics that are defined for any single image; others may need a whole set.
_OF_ONE_IMAGE = ('CocoMetric', 'IoUMetric', 'VOCMetric')


def rehearse(runner) -> None:
    """Rehearse a training that is built and loaded, and about to begin.

    To be called by all processes of a distributed run.

    Args:
        runner: of `mmattn.engine.runner`.

    Raises:
        UsageError: the config is wrong; names the part, its value and what exists.
        DataError: an image cannot be read.
    """
    began = time.perf_counter()
    try:
        with _nothing_left(runner), tempfile.TemporaryDirectory() as folder:
            network = _copy(runner)
            if network is None:
                return
            aside = _aside(runner, network, folder)
            try:
                said = _rehearse(aside, runner)
            finally:
                _close(aside)
    except (MemoryError, torch.OutOfMemoryError, MemoryShortage) as error:
        runner.logger.info(f'the rehearsal ran out of memory and was left: {error}')
        return
    took = time.perf_counter() - began
    runner.logger.info(f'rehearsal: {said}, {took:.1f} s (--no-rehearsal leaves it out)')


def _rehearse(aside, runner) -> str:
    """Make the step and the validation; returns what was done, in words."""
    with _part(aside, 'the hooks of the config'):
        aside.call_hook('before_run')
        aside.call_hook('before_train')
        aside.call_hook('before_train_epoch')
    count = _step(aside, runner)
    said = f'a step on {count} image{"s" * (count > 1)}'
    if runner._val_loop is not None and _validate(aside, runner):
        said += ' and the validation of one passed'
    else:
        said += ' passed'
    return said


# ---- a runner on the side ------------------------------------------------------------------------
def _copy(runner) -> nn.Module | None:
    """A copy of the network that shares nothing with it; None if there can be none."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    try:
        copied = copy.deepcopy(model)
    except (RuntimeError, TypeError, AttributeError) as error:
        if out_of_memory(error):
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


class _Aside:
    """What a rehearsal changes in a runner: it writes nowhere, and its loader has one batch."""

    real = None  # the runner that is rehearsed

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in [*logger.handlers]:
            if not isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
        return logger

    def build_train_loop(self, loop):
        return EngineRunner.build_train_loop(self, loop)  # ours would reorder the one batch

    def wrap_model(self, model_wrapper_cfg, model: nn.Module) -> nn.Module:
        return model  # gradients stay in this process

    def register_hooks(self, default_hooks=None, custom_hooks=None) -> None:
        super().register_hooks(default_hooks, custom_hooks)
        self._hooks = [h for h in self._hooks if _is_rehearsed(h)]
        for hook in self._hooks:
            if isinstance(hook, LoggerHook) or getattr(hook, 'draw', False):
                hook.interval = 1
            if isinstance(hook, CheckpointHook):
                hook.out_dir = None

    def load_or_resume(self) -> None:
        pass

    def dump_config(self) -> None:
        pass

    def _log_env(self, env_cfg: dict) -> None:
        pass

    def build_optim_wrapper(self, optim_wrapper):
        return EngineRunner.build_optim_wrapper(self, optim_wrapper)  # nothing to watch

    def write_checkpoint(self, path: Path, content: dict, facts: dict) -> None:
        """Write all but the values of the tensors."""
        super().write_checkpoint(path, _emptied(content), facts)


def _emptied(value):
    """The same structure with empty tensors."""
    if isinstance(value, torch.Tensor):
        return value.new_empty(0)
    if isinstance(value, dict):
        return type(value)((k, _emptied(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_emptied(v) for v in value)
    return value


def _is_rehearsed(hook) -> bool:
    """Whether a hook is one of the packages', which act on the work dir alone."""
    kind = type(hook)
    return kind.__module__.split('.')[0] in _OURS and not isinstance(hook, ProfilerHook)


def _aside(runner, network: nn.Module, folder: str):
    """A runner like another, over a copy of its network, that writes into a folder of its own."""
    cfg = copy.deepcopy(runner.cfg)
    cfg.work_dir, cfg.load_from, cfg.resume = folder, None, False
    cfg.experiment_name = f'{runner.experiment_name}_rehearsal'
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    if cfg.get('visualizer'):
        cfg.visualizer.name = cfg.experiment_name
        backends = cfg.visualizer.get('vis_backends') or []
        cfg.visualizer.vis_backends = [b for b in backends if _kind(b) in _LOCAL]
    val = runner._val_loop is not None
    train = _loader(runner.train_dataloader)
    given = dict(
        train_dataloader=train,
        val_dataloader=_loader(runner.val_loop.dataloader) if val else None,
        val_cfg=cfg.get('val_cfg') if val else None,
        val_evaluator=_evaluator(runner.val_loop.evaluator, folder) if val else None,
        log_level='WARNING',
    )
    keys = (
        *('train_cfg', 'optim_wrapper', 'param_scheduler', 'default_hooks', 'custom_hooks'),
        *('launcher', 'env_cfg', 'log_processor', 'visualizer', 'default_scope'),
        'experiment_name',
    )
    given |= {key: cfg[key] for key in keys if cfg.get(key) is not None}
    kind = type('Rehearsal', (_Aside, type(runner)), {})
    with _part(runner, 'the hooks, the visualizer or the log processor'):
        aside = kind(
            model=network, work_dir=folder, randomness=dict(seed=runner.seed), cfg=cfg, **given
        )
    aside.course, aside.train_command = runner.course, ''
    with _part(aside, 'train_cfg'):
        _ = aside.train_loop
    if val:
        with _part(aside, 'val_cfg'):
            _ = aside.val_loop
    aside.optim_wrapper = aside.build_optim_wrapper(aside.optim_wrapper)
    if aside.param_schedulers is not None:
        aside.param_schedulers = aside.build_param_scheduler(aside.param_schedulers)
    aside.optim_wrapper.initialize_count_status(aside.model, 0, aside.train_loop.max_iters)
    return aside


class _Loader(DataLoader):
    """A loader as long as another."""

    length = 0

    def __len__(self) -> int:
        return self.length


def _loader(real: DataLoader) -> DataLoader:
    """A loader over a copy of a data set, whose transforms may remember what they have seen."""
    memo = {}
    for part in _parts(real.dataset):
        for name in 'data_bytes', 'data_address', 'data_list':  # large, and never changed
            value = getattr(part, name, None)
            memo[id(value)] = value
    loader = _Loader(
        copy.deepcopy(real.dataset, memo),
        batch_size=real.batch_size or getattr(real.batch_sampler, 'batch_size', 1),
        collate_fn=real.collate_fn,
    )
    loader.length = len(real)
    return loader


def _parts(dataset) -> Iterator:
    """A data set and those inside it."""
    yield dataset
    for name in 'inner', 'dataset', '_dataset':
        if name in getattr(dataset, '__dict__', {}):
            yield from _parts(getattr(dataset, name))
    for part in getattr(dataset, '__dict__', {}).get('datasets', ()):
        yield from _parts(part)


def _evaluator(real, folder: str):
    """A copy of an evaluator, over the same annotations, that writes into a folder of its own."""
    evaluator = copy.copy(real)
    evaluator.metrics = [copy.copy(metric) for metric in real.metrics]
    for metric in evaluator.metrics:
        metric.results = []
        for name in 'outfile_prefix', 'output_dir', 'out_file_path':
            if getattr(metric, name, None):
                setattr(metric, name, str(Path(folder) / name))
    return evaluator


# ---- the step ------------------------------------------------------------------------------------
def _step(aside, runner) -> int:
    """One step on a small batch; returns of how many images."""
    aside.model.train()
    loader = aside.train_dataloader
    count = _batch_size(runner.train_dataloader, aside.model)
    with _part(aside, 'train_dataloader'), scoped(0):
        samples = _samples(loader.dataset, count)
        batch = loader.collate_fn(samples)
    with _part(aside, 'the hooks of the config'):
        aside.call_hook('before_train_iter', batch_idx=0, data_batch=batch)
    with _part(aside, 'the first training step'):
        seen = _padding(aside.model, batch)
        outputs = aside.model.train_step(batch, optim_wrapper=aside.optim_wrapper)
    if seen:
        runner.logger.warning(seen)
    with _part(aside, 'the hooks of the config'):
        aside.call_hook('after_train_iter', batch_idx=0, data_batch=batch, outputs=outputs)
    aside.train_loop._iter += 1
    return len(samples)


def _batch_size(loader: DataLoader, model: nn.Module) -> int:
    """The smallest batch of an epoch, at most two images; one where no norm looks at the batch."""
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
    if not any(isinstance(m, _BatchNorm) and m.training for m in model.modules()):
        return 1
    return min(size, last_batch(loader) or size, 2)


def last_batch(loader: DataLoader) -> int:
    """Images in the last batch of an epoch, if that is cut short; else 0."""
    sampler, size = loader.sampler, loader.batch_size
    if size is None or loader.drop_last or getattr(sampler, 'endless', False):
        return 0
    try:
        return len(sampler) % size
    except TypeError:
        return 0


def _samples(dataset, count: int) -> list:
    """The first samples of a data set, rather some that have annotations."""
    found, empty = [], []
    for index in range(min(_DRAWN, len(dataset))):
        sample = dataset[index]
        (found if _is_annotated(sample) else empty).append(sample)
        if len(found) == count:
            break
    return (found + empty)[:count]


def _is_annotated(sample) -> bool:
    data = sample.get('data_samples') if isinstance(sample, dict) else None
    if hasattr(data, 'gt_instances'):
        return len(data.gt_instances) > 0
    if hasattr(data, 'gt_sem_seg'):
        return bool((data.gt_sem_seg.data != 255).any())
    return True


def _padding(model: nn.Module, batch) -> str:
    """A sentence if most of a batch is padding."""
    with torch.no_grad():
        data = model.data_preprocessor(copy.deepcopy(batch), True)
    inputs, samples = (data.get(k) for k in ('inputs', 'data_samples'))
    given = batch.get('inputs')
    if not isinstance(inputs, torch.Tensor) or not isinstance(given, list) or not samples:
        return ''
    if len(given) != len(inputs):
        return ''
    filled = sum(x.shape[-1] * x.shape[-2] for x in given)
    whole = inputs.shape[-1] * inputs.shape[-2] * len(inputs)
    share = 1 - filled / whole
    if share <= _MOSTLY:
        return ''
    height, width = given[0].shape[-2:]
    return (
        f'{100 * share:.0f} % of a training batch is padding: images of {width}x{height} are '
        f'padded to {inputs.shape[-1]}x{inputs.shape[-2]}. Set the crop of the pipeline and '
        'model.data_preprocessor alike.'
    )


# ---- the validation ------------------------------------------------------------------------------
def _validate(aside, runner) -> bool:
    """Validate one image; returns whether its metrics could be computed."""
    loop = aside.val_loop
    loader, evaluator = loop.dataloader, loop.evaluator
    if not len(loader.dataset):
        raise UsageError('config key val_dataloader: its data set holds no image.')
    with _part(aside, 'val_dataloader'):
        batch = (loader.collate_fn or pseudo_collate)([loader.dataset[0]])
    with _part(aside, 'the hooks of the config'):
        aside.call_hook('before_val')
        aside.call_hook('before_val_epoch')
    aside.model.eval()
    with torch.no_grad(), _part(aside, 'the first validation step'):
        aside.call_hook('before_val_iter', batch_idx=0, data_batch=batch)
        outputs = aside.model.val_step(batch)
        for sample in outputs:
            _give_one_object(sample)
    with _part(aside, 'val_evaluator'):
        evaluator.process(data_samples=outputs, data_batch=batch)
    with _part(aside, 'drawing a validation image'):
        aside.call_hook('after_val_iter', batch_idx=0, data_batch=batch, outputs=outputs)
    metrics = _metrics(evaluator, outputs, aside, runner)
    if metrics is None:
        return False
    _check_monitors(aside, metrics)
    with _part(aside, 'what follows a validation'):
        aside.call_hook('after_val_epoch', metrics=metrics)
        aside.call_hook('after_val')
    return True


def _metrics(evaluator, outputs: list, aside, runner) -> dict | None:
    """The metrics of one image; None if one of them needs more."""
    for metric in evaluator.metrics:
        if hasattr(metric, 'img_ids') and hasattr(metric, '_coco_api'):
            ids = [sample.metainfo.get('img_id') for sample in outputs]
            metric.img_ids = ids if metric._coco_api else None
    known = all(type(m).__name__ in _OF_ONE_IMAGE for m in evaluator.metrics)
    try:
        with _part(aside, 'val_evaluator'):
            return dict(evaluator.evaluate(len(outputs)))
    except UsageError as error:
        if known:
            raise
        runner.logger.info(f'the metrics are not rehearsed, as they may need more images: {error}')
        return None


def _give_one_object(sample) -> None:
    """Where a network that is not trained finds nothing: metrics of nothing have no names."""
    found = getattr(sample, 'pred_instances', None)
    if found is None or len(found) or 'bboxes' not in found:
        return
    height, width = sample.metainfo['ori_shape'][:2]
    device = found.bboxes.device
    fields = dict(
        bboxes=torch.tensor([[0.0, 0.0, width, height]], device=device),
        scores=torch.ones(1, device=device),
        labels=torch.zeros(1, dtype=torch.long, device=device),
    )
    if 'masks' in found:
        fields['masks'] = torch.ones(1, height, width, dtype=torch.bool, device=device)
    sample.pred_instances = InstanceData(**fields)


def _check_monitors(aside, metrics: dict) -> None:
    """Refuse the name of a metric that the evaluator does not give."""
    asked: list[tuple[str, str]] = []
    for hook in aside.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            asked += [('default_hooks.checkpoint.save_best', key) for key in hook.key_indicators]
        if isinstance(hook, EarlyStoppingHook) and hook.strict:
            asked.append(('custom_hooks: EarlyStoppingHook.monitor', hook.monitor))
    for index, scheduler in enumerate(aside.param_schedulers or ()):
        if hasattr(scheduler, 'monitor'):
            asked.append((f'param_scheduler[{index}].monitor', scheduler.monitor))
    for key, name in asked:
        if name != 'auto' and name not in metrics:
            raise UsageError(
                f'config key {key}={name!r}: val_evaluator gives {", ".join(metrics)}.'
                f'{nearest(name, metrics)}'
            )


# ---- nothing is left -----------------------------------------------------------------------------
@contextlib.contextmanager
def _nothing_left(runner) -> Iterator[None]:
    """Put back whatever a process shares: generators, current logger and scope, what is printed."""
    randomness = snapshot()
    model = runner.model
    buffers = [(b, b.clone()) for b in model.buffers()]
    gradients = [p for p in model.parameters() if p.grad is None]
    managers = [(cls, cls._instance_dict.copy()) for cls in _subclasses(ManagerMixin)]
    mode = model.training
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        known = dict(managers)
        for cls in _subclasses(ManagerMixin):
            cls._instance_dict.clear()
            cls._instance_dict.update(known.get(cls, {}))
        for buffer, value in buffers:
            if not torch.equal(buffer, value):
                buffer.copy_(value)
        for parameter in gradients:
            parameter.grad = None
        model.train(mode)
        restore(randomness)
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _subclasses(cls: type) -> Iterator[type]:
    yield cls
    for child in cls.__subclasses__():
        yield from _subclasses(child)


def _close(aside) -> None:
    aside.visualizer.close()
    for handler in [*aside.logger.handlers]:
        aside.logger.removeHandler(handler)
        handler.close()


# ---- what went wrong -----------------------------------------------------------------------------
@contextlib.contextmanager
def _part(runner, where: str) -> Iterator[None]:
    """What fails in a part of the rehearsal is an error of the config, unless it is known."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MmattnError) or out_of_memory(error):
            raise
        known = explain(error)
        if known and known[0] != Exit.BUG:
            raise
        raise UsageError(
            f'config {runner.cfg.filename} fails in {where}: {_reason(error)}{_hint(error, runner)}'
        ) from error


def _reason(error: Exception) -> str:
    """Kind, text and place of an error."""
    text = ' '.join(str(error).split()) or 'no message'
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if _package(f.filename)), None)
    at = f' ({_package(place.filename)}:{place.lineno})' if place else ''
    return f'{type(error).__name__}: {text}{at}.'


def _package(file: str) -> str:
    """The path of a file of one of the packages, from the package on."""
    parts = Path(file).parts
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] in _OURS:
            return '/'.join(parts[index:])
    return ''


def _hint(error: Exception, runner) -> str:
    """What to do, where that is known."""
    text = str(error)
    if 'Expected more than 1 value per channel' in text:
        return _norm_hint(runner)
    losses = [*_dicts(runner.cfg.model, 'model')]
    if 'out of bounds' in text or 'out_of_bounds' in text:
        for key, part in losses:
            loss = part.get('loss_decode')
            if part.get('out_channels') == 1 and loss and not loss.get('use_sigmoid'):
                return (
                    f' {key}.out_channels=1 is for a loss of one map: set '
                    f'{key}.loss_decode.use_sigmoid=True.'
                )
    for key, part in losses:
        weights = part.get('class_weight')
        if isinstance(weights, list | tuple):
            return f' Look at {key}.class_weight, which has {len(weights)} values.'
    return ''


def _norm_hint(runner) -> str:
    real = runner.real or runner
    loader = real.train_dataloader
    rest, size = last_batch(loader), loader.batch_size
    if size and size > 1 and rest == 1:
        return (
            f' {len(loader.sampler)} images in batches of {size} leave a last batch of one, and a '
            'norm over pooled values needs two: set train_dataloader.drop_last=True, or another '
            'batch_size.'
        )
    return ' A norm over pooled values needs two images: set train_dataloader.batch_size=2.'


def _dicts(value, where: str) -> Iterator[tuple[str, dict]]:
    """Every dict below a value, with its key."""
    if isinstance(value, dict):
        yield where, value
        for key, item in value.items():
            yield from _dicts(item, f'{where}.{key}')
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _dicts(item, f'{where}[{index}]')


def _kind(cfg: dict) -> str:
    """The bare name of a `type`."""
    kind = cfg.get('type', '')
    return kind.split('.')[-1] if isinstance(kind, str) else kind.__name__
