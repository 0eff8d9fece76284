"""A rehearsal before the first step: errors of the config show up now instead of hours later.

A copy of the network takes one small batch forward, backward and through the optimizer; then one
validation image goes through metrics, the choice of the best checkpoint, drawing and saving, all in
a temporary folder. A test rehearses one image in the same way. Weights, statistics, random number
generators, logs and message hubs are restored, so that a run with a rehearsal equals one without,
bit for bit.
"""

import copy
import tempfile
import time

import torch
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.structures import InstanceData
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, IterableDataset

from mmattn.engine.out_of_memory import is_out_of_memory
from mmattn.engine.resume.rng import seeded
from mmattn.errors import UsageError
from mmattn.text import nearest

from .config_errors import as_config_error, last_batch_size
from .scratch_runner import build_scratch_runner, close_scratch_runner, copy_network, restore_state

_SEARCHED = 8  # samples among which some with annotations are looked for
_MAX_PADDING = 0.5  # share of a batch; more padding gives a warning
# Metrics that are defined for any single image; others may need a whole data set.
_SINGLE_IMAGE_METRICS = ('CocoMetric', 'IoUMetric', 'VOCMetric', 'DumpResults', 'DumpDetResults')


def rehearse(runner) -> None:
    """Rehearse a training or a test right before it starts.

    To be called by all processes of a distributed run.

    Args:
        runner: runner of `mmattn.engine.runner`, built and with its weights loaded.

    Raises:
        UsageError: the config is wrong; names the part, its value and what exists.
        DataError: an image cannot be read.
    """
    start = time.perf_counter()
    try:
        with restore_state(runner), tempfile.TemporaryDirectory() as folder:
            network = copy_network(runner)
            if network is None:
                return
            scratch = build_scratch_runner(runner, network, folder)
            try:
                done = _rehearse(scratch, runner)
            finally:
                close_scratch_runner(scratch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        runner.logger.info(f'the rehearsal ran out of memory and was skipped: {error}')
        return
    seconds = time.perf_counter() - start
    runner.logger.info(f'rehearsal: {done} passed, {seconds:.1f} s (--no-rehearsal skips it)')


def _rehearse(scratch, runner) -> str:
    """Run the step and the validation, or the test; returns a description of what was run."""
    with as_config_error(scratch, 'the hooks of the config'):
        scratch.call_hook('before_run')
    if scratch._train_loop is None:
        _evaluate(scratch, runner, 'test')
        return 'a test of one image'
    with as_config_error(scratch, 'the hooks of the config'):
        scratch.call_hook('before_train')
        scratch.call_hook('before_train_epoch')
    count = _step(scratch, runner)
    done = [f'a step on {count} image{"s" * (count > 1)}'] if count else []
    if scratch._val_loop is not None and _evaluate(scratch, runner, 'val'):
        done.append(f'the validation of one{"" if count else " image"}')
    return ' and '.join(done) or 'what can be tried'


# ---- training step -----------------------------------------------------------------------------
def _step(scratch, runner) -> int:
    """Run one step on a small batch; returns its number of images, 0 if no step was possible."""
    scratch.model.train()
    loader = scratch.train_dataloader
    with as_config_error(scratch, 'train_dataloader'), seeded(0):
        samples = _samples(runner, loader.dataset, scratch.model)
        if not samples:
            return 0
        batch = loader.collate_fn(samples)
    with as_config_error(scratch, 'the hooks of the config'):
        scratch.call_hook('before_train_iter', batch_idx=0, data_batch=batch)
    with as_config_error(scratch, 'the first training step'):
        warning = _padding(scratch.model, batch)
        outputs = scratch.model.train_step(batch, optim_wrapper=scratch.optim_wrapper)
    if warning:
        runner.logger.warning(warning)
    with as_config_error(scratch, 'the hooks of the config'):
        scratch.call_hook('after_train_iter', batch_idx=0, data_batch=batch, outputs=outputs)
    scratch.train_loop._iter += 1
    return len(samples)


def _samples(runner, dataset, model: nn.Module) -> list:
    """A few samples of the data set, if possible with annotations.

    With an unknown sampler, its first batch: the network may need the mixture that it composes.
    """
    loader = runner.train_dataloader
    if isinstance(dataset, IterableDataset):
        return []
    batches = getattr(runner.train_loop, 'batches', None)
    if batches is None or not batches.deterministic:
        try:
            sampler = copy.deepcopy(loader.batch_sampler, {id(loader.dataset): dataset})
            return [dataset[index] for index in next(iter(sampler))]
        except TypeError as error:  # it has an attribute that cannot be copied
            runner.logger.info(f'no step is rehearsed: the sampler cannot be copied: {error}')
            return []
    count = _batch_size(loader, model)
    annotated, empty = [], []
    for index in range(min(_SEARCHED, len(dataset))):
        sample = dataset.inner[dataset.index(index)]
        (annotated if _is_annotated(sample) else empty).append(sample)
        if len(annotated) == count:
            break
    return (annotated + empty)[:count]


def _batch_size(loader: DataLoader, model: nn.Module) -> int:
    """Size of the smallest batch of an epoch, at most 2; 1 if no norm depends on the batch."""
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
    norms = _BatchNorm | nn.GroupNorm  # torch counts the values of a group over the batch
    if not any(isinstance(m, norms) and m.training for m in model.modules()):
        return 1
    return min(size, last_batch_size(loader) or size, 2)


def _is_annotated(sample) -> bool:
    data = sample.get('data_samples') if isinstance(sample, dict) else None
    if hasattr(data, 'gt_instances'):
        return len(data.gt_instances) > 0
    if hasattr(data, 'gt_sem_seg'):
        return bool((data.gt_sem_seg.data != 255).any())
    return True


def _padding(model: nn.Module, batch) -> str:
    """A warning if most of a batch is padding; else ''."""
    images = batch.get('inputs') if isinstance(batch, dict) else None
    if not isinstance(images, list):
        return ''
    with torch.no_grad():
        data = model.data_preprocessor(copy.deepcopy(batch), True)
    padded = data['inputs']
    if not isinstance(padded, torch.Tensor) or len(padded) != len(images):
        return ''
    filled = sum(x.shape[-1] * x.shape[-2] for x in images)
    height, width = padded.shape[-2:]
    share = 1 - filled / (len(images) * height * width)
    if share <= _MAX_PADDING:
        return ''
    size = 'x'.join(map(str, images[0].shape[:-3:-1]))
    return (
        f'{100 * share:.0f} % of a training batch is padding: images of {size} are padded to '
        f'{width}x{height}. Set the crop of the pipeline and model.data_preprocessor alike.'
    )


# ---- evaluation --------------------------------------------------------------------------------
def _evaluate(scratch, runner, mode: str) -> bool:
    """Validate or test one image; returns whether its metrics were computed."""
    loop = getattr(scratch, f'{mode}_loop')
    loader, evaluator = loop.dataloader, loop.evaluator
    if not len(loader.dataset):
        raise UsageError(f'config key {mode}_dataloader: its data set holds no image.')
    with as_config_error(scratch, f'{mode}_dataloader'):
        batch = (loader.collate_fn or pseudo_collate)([loader.dataset[0]])
    with as_config_error(scratch, 'the hooks of the config'):
        scratch.call_hook(f'before_{mode}')
        scratch.call_hook(f'before_{mode}_epoch')
    scratch.model.eval()
    with torch.no_grad(), as_config_error(scratch, f'the first {mode} step'):
        scratch.call_hook(f'before_{mode}_iter', batch_idx=0, data_batch=batch)
        outputs = getattr(scratch.model, f'{mode}_step')(batch)
        for sample in outputs:
            _add_object_if_none(sample)
    with as_config_error(scratch, f'{mode}_evaluator'):
        evaluator.process(data_samples=outputs, data_batch=batch)
    with as_config_error(scratch, f'drawing a {mode} image'):
        scratch.call_hook(f'after_{mode}_iter', batch_idx=0, data_batch=batch, outputs=outputs)
    metrics = _metrics(scratch, runner, evaluator, outputs, mode)
    if metrics is None:
        return False
    if mode == 'val':
        _check_monitors(scratch, metrics)
    with as_config_error(scratch, f'the hooks after a {mode} run'):
        scratch.call_hook(f'after_{mode}_epoch', metrics=metrics)
        scratch.call_hook(f'after_{mode}')
    return True


def _metrics(scratch, runner, evaluator, outputs: list, mode: str) -> dict | None:
    """The metrics of one image; None if one of them may need a whole data set."""
    metrics = [type(metric).__name__ for metric in evaluator.metrics]
    others = [name for name in metrics if name not in _SINGLE_IMAGE_METRICS]
    if type(evaluator) is not Evaluator or others:
        names = ', '.join(others) or type(evaluator).__name__
        runner.logger.info(f'the metrics are not rehearsed: {names} may need a whole data set')
        return None
    for metric in evaluator.metrics:
        if getattr(metric, '_coco_api', None):
            metric.img_ids = [sample.metainfo.get('img_id') for sample in outputs]
    with as_config_error(scratch, f'{mode}_evaluator'):
        return dict(evaluator.evaluate(len(outputs)))


def _add_object_if_none(sample) -> None:
    """Give an image without detections one: without any, metrics return no names to check."""
    objects = getattr(sample, 'pred_instances', None)
    if objects is None or len(objects) or 'bboxes' not in objects:
        return
    height, width = sample.metainfo['ori_shape'][:2]
    device = objects.bboxes.device
    fields = dict(
        bboxes=torch.tensor([[0.0, 0.0, width, height]], device=device),
        scores=torch.ones(1, device=device),
        labels=torch.zeros(1, dtype=torch.long, device=device),
    )
    if 'masks' in objects:
        fields['masks'] = torch.ones(1, height, width, dtype=torch.bool, device=device)
    sample.pred_instances = InstanceData(**fields)


def _check_monitors(scratch, metrics: dict) -> None:
    """Raise `UsageError` for a monitored metric that the evaluator does not return."""
    if not metrics:
        return
    monitors: list[tuple[str, str]] = []
    for hook in scratch.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            monitors += [('default_hooks.checkpoint.save_best', key) for key in hook.key_indicators]
        if isinstance(hook, EarlyStoppingHook):
            monitors.append(('monitor (EarlyStoppingHook)', hook.monitor))
    for index, scheduler in enumerate(scratch.param_schedulers or ()):
        if hasattr(scheduler, 'monitor'):
            monitors.append((f'param_scheduler[{index}].monitor', scheduler.monitor))
    names = [*metrics, *(n for hook in scratch.hooks for n in getattr(hook, 'metric_names', ()))]
    for key, name in monitors:
        if name != 'auto' and name not in names:
            similar = [k for k in names if k.casefold().endswith(name.casefold())]
            raise UsageError(
                f'config key {key}={name!r}: val_evaluator gives {", ".join(metrics)}.'
                f'{f" Did you mean {similar[0]}?" if similar else nearest(name, names)}'
            )
