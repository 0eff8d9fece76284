"""A rehearsal before the first step: what the config says wrong shows now, not hours later.

A copy of the network takes one small batch forward, backward and through the optimizer; then one
validation image goes through the metrics, the rule of the best checkpoint, drawing and writing, all
in a temporary folder. A test rehearses one image the same way. Nothing is left behind: weights,
statistics, random generators, logs and message hubs are as before, so a run with a rehearsal equals
one without bit for bit.
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

from .config_errors import last_batch, part
from .scratch_runner import close, copy_network, nothing_left, stand_in

_DRAWN = 8  # samples looked through for some with annotations
_MOSTLY = 0.5  # padding beyond this share of a batch is worth a warning
# Metrics that are defined for any single image; others may need a whole set.
_OF_ONE_IMAGE = ('CocoMetric', 'IoUMetric', 'VOCMetric', 'DumpResults', 'DumpDetResults')


def rehearse(runner) -> None:
    """Rehearse a training or a test that is built and loaded, and about to begin.

    To be called by all processes of a distributed run.

    Args:
        runner: of `mmattn.engine.runner`.

    Raises:
        UsageError: the config is wrong; names the part, its value and what exists.
        DataError: an image cannot be read.
    """
    began = time.perf_counter()
    try:
        with nothing_left(runner), tempfile.TemporaryDirectory() as folder:
            network = copy_network(runner)
            if network is None:
                return
            double = stand_in(runner, network, folder)
            try:
                done = _rehearse(double, runner)
            finally:
                close(double)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        runner.logger.info(f'the rehearsal ran out of memory and was left: {error}')
        return
    took = time.perf_counter() - began
    runner.logger.info(f'rehearsal: {done} passed, {took:.1f} s (--no-rehearsal leaves it out)')


def _rehearse(double, runner) -> str:
    """Make the step and the validation, or the test; returns what was done, in words."""
    with part(double, 'the hooks of the config'):
        double.call_hook('before_run')
    if double._train_loop is None:
        _evaluate(double, runner, 'test')
        return 'a test of one image'
    with part(double, 'the hooks of the config'):
        double.call_hook('before_train')
        double.call_hook('before_train_epoch')
    count = _step(double, runner)
    done = [f'a step on {count} image{"s" * (count > 1)}'] if count else []
    if double._val_loop is not None and _evaluate(double, runner, 'val'):
        done.append(f'the validation of one{"" if count else " image"}')
    return ' and '.join(done) or 'what can be tried'


# ---- the step ------------------------------------------------------------------------------------
def _step(double, runner) -> int:
    """One step on a small batch; returns of how many images, 0 if there is none to be had."""
    double.model.train()
    loader = double.train_dataloader
    with part(double, 'train_dataloader'), seeded(0):
        samples = _samples(runner, loader.dataset, double.model)
        if not samples:
            return 0
        batch = loader.collate_fn(samples)
    with part(double, 'the hooks of the config'):
        double.call_hook('before_train_iter', batch_idx=0, data_batch=batch)
    with part(double, 'the first training step'):
        warning = _padding(double.model, batch)
        outputs = double.model.train_step(batch, optim_wrapper=double.optim_wrapper)
    if warning:
        runner.logger.warning(warning)
    with part(double, 'the hooks of the config'):
        double.call_hook('after_train_iter', batch_idx=0, data_batch=batch, outputs=outputs)
    double.train_loop._iter += 1
    return len(samples)


def _samples(runner, dataset, model: nn.Module) -> list:
    """A few samples of the data set, rather some that have annotations.

    A sampler that is not known may owe the network a batch of a certain mixture: its first one.
    """
    loader = runner.train_dataloader
    if isinstance(dataset, IterableDataset):
        return []
    batches = getattr(runner.train_loop, 'batches', None)
    if batches is None or not batches.deterministic:
        try:
            sampler = copy.deepcopy(loader.batch_sampler, {id(loader.dataset): dataset})
            return [dataset[index] for index in next(iter(sampler))]
        except TypeError as error:  # it holds what cannot be copied
            runner.logger.info(f'no step is rehearsed: the sampler cannot be copied: {error}')
            return []
    count = _batch_size(loader, model)
    annotated, empty = [], []
    for index in range(min(_DRAWN, len(dataset))):
        sample = dataset.inner[dataset.index(index)]
        (annotated if _is_annotated(sample) else empty).append(sample)
        if len(annotated) == count:
            break
    return (annotated + empty)[:count]


def _batch_size(loader: DataLoader, model: nn.Module) -> int:
    """The smallest batch of an epoch, at most two images; one where no norm looks at the batch."""
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
    norms = _BatchNorm | nn.GroupNorm  # torch counts a group's values over the batch
    if not any(isinstance(m, norms) and m.training for m in model.modules()):
        return 1
    return min(size, last_batch(loader) or size, 2)


def _is_annotated(sample) -> bool:
    data = sample.get('data_samples') if isinstance(sample, dict) else None
    if hasattr(data, 'gt_instances'):
        return len(data.gt_instances) > 0
    if hasattr(data, 'gt_sem_seg'):
        return bool((data.gt_sem_seg.data != 255).any())
    return True


def _padding(model: nn.Module, batch) -> str:
    """A warning if most of a batch is padding."""
    given = batch.get('inputs') if isinstance(batch, dict) else None
    if not isinstance(given, list):
        return ''
    with torch.no_grad():
        data = model.data_preprocessor(copy.deepcopy(batch), True)
    padded = data['inputs']
    if not isinstance(padded, torch.Tensor) or len(padded) != len(given):
        return ''
    filled = sum(x.shape[-1] * x.shape[-2] for x in given)
    height, width = padded.shape[-2:]
    share = 1 - filled / (len(given) * height * width)
    if share <= _MOSTLY:
        return ''
    size = 'x'.join(map(str, given[0].shape[:-3:-1]))
    return (
        f'{100 * share:.0f} % of a training batch is padding: images of {size} are padded to '
        f'{width}x{height}. Set the crop of the pipeline and model.data_preprocessor alike.'
    )


# ---- the evaluation ------------------------------------------------------------------------------
def _evaluate(double, runner, mode: str) -> bool:
    """Validate or test one image; returns whether its metrics could be computed."""
    loop = getattr(double, f'{mode}_loop')
    loader, evaluator = loop.dataloader, loop.evaluator
    if not len(loader.dataset):
        raise UsageError(f'config key {mode}_dataloader: its data set holds no image.')
    with part(double, f'{mode}_dataloader'):
        batch = (loader.collate_fn or pseudo_collate)([loader.dataset[0]])
    with part(double, 'the hooks of the config'):
        double.call_hook(f'before_{mode}')
        double.call_hook(f'before_{mode}_epoch')
    double.model.eval()
    with torch.no_grad(), part(double, f'the first {mode} step'):
        double.call_hook(f'before_{mode}_iter', batch_idx=0, data_batch=batch)
        outputs = getattr(double.model, f'{mode}_step')(batch)
        for sample in outputs:
            _give_one_object(sample)
    with part(double, f'{mode}_evaluator'):
        evaluator.process(data_samples=outputs, data_batch=batch)
    with part(double, f'drawing a {mode} image'):
        double.call_hook(f'after_{mode}_iter', batch_idx=0, data_batch=batch, outputs=outputs)
    metrics = _metrics(double, runner, evaluator, outputs, mode)
    if metrics is None:
        return False
    if mode == 'val':
        _check_monitors(double, metrics)
    with part(double, f'what follows a {mode} run'):
        double.call_hook(f'after_{mode}_epoch', metrics=metrics)
        double.call_hook(f'after_{mode}')
    return True


def _metrics(double, runner, evaluator, outputs: list, mode: str) -> dict | None:
    """The metrics of one image; None if one of them may need more."""
    others = [type(m).__name__ for m in evaluator.metrics if type(m).__name__ not in _OF_ONE_IMAGE]
    if type(evaluator) is not Evaluator or others:
        why = ', '.join(others) or type(evaluator).__name__
        runner.logger.info(f'the metrics are not rehearsed: {why} may need a whole data set')
        return None
    for metric in evaluator.metrics:
        if getattr(metric, '_coco_api', None):
            metric.img_ids = [sample.metainfo.get('img_id') for sample in outputs]
    with part(double, f'{mode}_evaluator'):
        return dict(evaluator.evaluate(len(outputs)))


def _give_one_object(sample) -> None:
    """Where a network that is not trained finds nothing: metrics of nothing have no names."""
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


def _check_monitors(double, metrics: dict) -> None:
    """Refuse the name of a metric that the evaluator does not give."""
    if not metrics:
        return
    asked: list[tuple[str, str]] = []
    for hook in double.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            asked += [('default_hooks.checkpoint.save_best', key) for key in hook.key_indicators]
        if isinstance(hook, EarlyStoppingHook):
            asked.append(('monitor (EarlyStoppingHook)', hook.monitor))
    for index, scheduler in enumerate(double.param_schedulers or ()):
        if hasattr(scheduler, 'monitor'):
            asked.append((f'param_scheduler[{index}].monitor', scheduler.monitor))
    for key, name in asked:
        if name != 'auto' and name not in metrics:
            ending = [k for k in metrics if k.casefold().endswith(name.casefold())]
            raise UsageError(
                f'config key {key}={name!r}: val_evaluator gives {", ".join(metrics)}.'
                f'{f" Did you mean {ending[0]}?" if ending else nearest(name, metrics)}'
            )
