"""Hooks of every training run."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from mmengine.hooks import CheckpointHook as EngineCheckpointHook
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmattn.datasets.files import read_image
from mmattn.datasets.loading import ImageReader, to_display
from mmattn.engine.checkpoint import block_forms
from mmattn.engine.outputs import check_outputs, image_paths, leaves, picture_names
from mmattn.engine.saving import manifests, note, point_to, remove, tidy
from mmattn.registry import HOOKS
from mmattn.visualization.comparison import compare, compare_objects, save_picture
from mmattn.visualization.curves import plot_curves
from mmattn.visualization.objects import Objects, palette_of

if TYPE_CHECKING:
    from mmdet.structures import DetDataSample
    from mmseg.structures import SegDataSample

_PLAIN = (bool, int, float, str)


@HOOKS.register_module()
class CurvesHook(Hook):
    """Draws `<work_dir>/curves.png` after each validation and at the end.

    Args:
        metric: the validation metric to draw.
    """

    priority = 'VERY_LOW'  # after the logger has written its records

    def __init__(self, metric: str = 'mIoU') -> None:
        self.metric = metric

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if runner.rank == 0:
            plot_curves(runner.work_dir, self.metric)

    def after_train(self, runner: Runner) -> None:
        if runner.rank == 0:
            plot_curves(runner.work_dir, self.metric)


@HOOKS.register_module()
class CheckpointHook(EngineCheckpointHook):
    """mmengine's hook; nothing is removed before what replaces it is written and verified.

    Its files load with `weights_only=True`, and `best.pth` names the best one. mmengine's message
    hub is the one part that holds other objects (`HistoryBuffer`, the smoothing windows of the log,
    of no use to a resumed run). While gradients accumulate, a save waits for the optimizer's step.
    Arguments are those of `mmengine.hooks.CheckpointHook`.
    """

    _waits = False  # a save is due
    _saved_iter = None  # of `last_ckpt`

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.file_backend = _RemovesLater(self.file_backend)
        best = getattr(self, 'best_ckpt_path', None)
        if best:  # where the folder is now: it may have been moved
            self.best_ckpt_path = os.path.join(self.out_dir, os.path.basename(best))
        if runner.rank == 0:
            tidy(self.out_dir)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint['meta']['command'] = getattr(runner, 'train_command', '')
        checkpoint['meta']['blocks'] = block_forms(runner.model)
        if runner.cfg.get('attention'):
            checkpoint['meta']['attention'] = json.loads(json.dumps(runner.cfg.attention))
        hub = _without_numpy(checkpoint['message_hub'])
        info = {k: v for k, v in hub['runtime_info'].items() if isinstance(v, _PLAIN)}
        info |= {k: v for k, v in hub['runtime_info'].items() if k == 'keep_ckpt_ids'}
        keys = {k: v for k, v in hub['resumed_keys'].items() if k in info}
        checkpoint['message_hub'] = dict(log_scalars={}, runtime_info=info, resumed_keys=keys)
        for name in 'meta', 'param_schedulers', 'optimizer':
            if name in checkpoint:
                checkpoint[name] = _without_numpy(checkpoint[name])

    def after_train_iter(self, runner: Runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.by_epoch:
            return
        due = self.every_n_train_iters(runner, self.interval, self.save_begin)
        self._waits |= due or (self.save_last and self.is_last_train_iter(runner))
        if self._waits and runner.optim_wrapper.should_update():
            self._waits = False
            runner.logger.info(f'Saving checkpoint at {runner.iter + 1} iterations')
            self._save_checkpoint(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        super().after_val_epoch(runner, metrics)
        if runner.rank == 0 and self._saved_iter == runner.iter:
            note(Path(self.last_ckpt), validated=runner.iter)

    def save_now(self, runner: Runner, step: int) -> Path:
        """The checkpoint of an iteration, written unless there is one; the next save removes it."""
        if self._saved_iter != step:
            meta = dict(epoch=runner.epoch, iter=step, temporary=True)
            self._save(runner, f'iter_{step}.pth', meta)
        return Path(self.last_ckpt)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = [self.filename_tmpl.format(self.keep_ckpt_ids.popleft())]
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._save(runner, self.filename_tmpl.format(step), meta)
        if runner.rank == 0:
            for name in outdated:
                remove(Path(self.out_dir) / name)

    def _save(self, runner: Runner, name: str, meta: dict) -> None:
        """Write a checkpoint to resume from, and have the pointer name it."""
        self.last_ckpt = os.path.join(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
        )
        self._saved_iter = meta['iter']
        if runner.rank == 0:
            point_to(Path(self.last_ckpt))
            for path, facts in manifests(self.out_dir):
                if facts.get('temporary') and path.name != name:
                    remove(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self.file_backend.holding() as outdated:
            super()._save_best_checkpoint(runner, metrics)
            best = getattr(self, 'best_ckpt_path', None)
            if best and runner.rank == 0:
                link, part = (
                    os.path.join(os.path.dirname(best), name) for name in ('best.pth', 'best.part')
                )
                if os.path.lexists(part):
                    os.remove(part)
                os.symlink(os.path.basename(best), part)
                os.replace(part, link)
        for path in outdated:
            if os.path.basename(path) != os.path.basename(best or ''):
                remove(path)


class _RemovesLater:
    """A file backend that, within `holding`, only notes what it was told to remove."""

    def __init__(self, backend) -> None:
        self._backend, self._held = backend, None

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    @contextlib.contextmanager
    def holding(self) -> Iterator[list[str]]:
        self._held = []
        try:
            yield self._held
        finally:
            self._held = None

    def remove(self, path: str) -> None:
        if self._held is None:
            remove(path)
        else:
            self._held.append(path)


class _Source(NamedTuple):
    """A data set of a test, as its pictures are drawn."""

    reader: ImageReader | None
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]


@HOOKS.register_module()
class ComparisonHook(Hook):
    """Writes a picture of truth and prediction side by side for every test image.

    Args:
        out_dir: the folder for the pictures, named as `picture_names` says.
        score: detections below it are not drawn.

    Raises:
        UsageError: before the test, if a picture would be written over a source or beside it.
    """

    def __init__(self, out_dir: str, score: float = 0.3) -> None:
        self.out_dir, self.score = Path(out_dir), score
        self.names: dict[str, Path] = {}
        self.sources: dict[str, _Source] = {}

    def before_test(self, runner: Runner) -> None:
        dataset = runner.test_dataloader.dataset
        self.names = picture_names(dataset)
        check_outputs(dataset, self.out_dir, self.names.values(), '--show-dir')
        for leaf in leaves(dataset):
            steps = getattr(getattr(leaf, 'pipeline', None), 'transforms', None)
            reader, meta = ImageReader(steps) if steps else None, leaf.metainfo
            source = _Source(reader, meta['classes'], palette_of(meta))
            self.sources |= dict.fromkeys(map(str, image_paths(leaf)), source)

    def after_test_iter(self, runner: Runner, batch_idx, data_batch=None, outputs=None) -> None:
        for sample in outputs:
            out = self.out_dir / self.names[str(sample.img_path)]
            save_picture(out, self._picture(sample, self.sources[str(sample.img_path)]))

    def _picture(self, sample: 'DetDataSample | SegDataSample', source: _Source) -> np.ndarray:
        if source.reader:
            loaded = source.reader.load(sample.img_path)
            image = to_display(loaded.image, source.reader.rgb)
        else:
            image = read_image(sample.img_path)
        about = dict(classes=source.classes, palette=source.palette)
        if 'pred_instances' in sample:
            truth = sample.get('gt_instances')
            truth = None if truth is None else Objects.of(truth)
            found = Objects.of(sample.pred_instances, self.score)
            return compare_objects(image, truth, found, **about)
        truth = sample.gt_sem_seg.data[0].cpu().numpy() if 'gt_sem_seg' in sample else None
        return compare(image, truth, sample.pred_sem_seg.data[0].cpu().numpy(), **about)


def _without_numpy(value):
    """The same structure with NumPy scalars as Python numbers."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {k: _without_numpy(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_numpy(v) for v in value)
    return value
