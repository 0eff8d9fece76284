"""Hooks of every training run."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from mmengine.hooks import CheckpointHook as EngineCheckpointHook
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmattn.engine.checkpoint import block_forms
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
    """mmengine's hook; its files load with `weights_only=True`, and `best.pth` names the best one.

    mmengine's message hub is the one part that holds other objects (`HistoryBuffer`, the smoothing
    windows of the log, of no use to a resumed run). Arguments are those of
    `mmengine.hooks.CheckpointHook`.
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint['meta']['command'] = getattr(runner, 'train_command', '')
        checkpoint['meta']['blocks'] = block_forms(runner.model)
        if runner.cfg.get('attention'):
            checkpoint['meta']['attention'] = json.loads(json.dumps(runner.cfg.attention))
        hub = _without_numpy(checkpoint['message_hub'])
        info = {k: v for k, v in hub['runtime_info'].items() if isinstance(v, _PLAIN)}
        keys = {k: v for k, v in hub['resumed_keys'].items() if k in info}
        checkpoint['message_hub'] = dict(log_scalars={}, runtime_info=info, resumed_keys=keys)
        for name in 'meta', 'param_schedulers', 'optimizer':
            if name in checkpoint:
                checkpoint[name] = _without_numpy(checkpoint[name])

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
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


@HOOKS.register_module()
class ComparisonHook(Hook):
    """Writes a picture of truth and prediction side by side for every test image.

    Args:
        out_dir: the folder for `<image name>.png`.
        score: detections below it are not drawn.
    """

    def __init__(self, out_dir: str, score: float = 0.3) -> None:
        self.out_dir, self.score = Path(out_dir), score

    def after_test_iter(self, runner: Runner, batch_idx, data_batch=None, outputs=None) -> None:
        for sample in outputs:
            out = self.out_dir / f'{Path(sample.img_path).stem}.png'
            if 'pred_instances' in sample:
                self._detections(runner, sample, out)
            else:
                self._segments(runner, sample, out)

    def _detections(self, runner: Runner, sample: 'DetDataSample', out: Path) -> None:
        meta = runner.test_dataloader.dataset.metainfo
        truth = sample.get('gt_instances')
        picture = compare_objects(
            cv2.imread(sample.img_path),
            None if truth is None else Objects.of(truth),
            Objects.of(sample.pred_instances, self.score),
            classes=meta['classes'],
            palette=palette_of(meta),
        )
        save_picture(out, picture)

    def _segments(self, runner: Runner, sample: 'SegDataSample', out: Path) -> None:
        truth = sample.gt_sem_seg.data[0].cpu().numpy() if 'gt_sem_seg' in sample else None
        meta = runner.test_dataloader.dataset.metainfo
        picture = compare(
            cv2.imread(sample.img_path),
            truth,
            sample.pred_sem_seg.data[0].cpu().numpy(),
            classes=meta['classes'],
            palette=meta['palette'],
        )
        save_picture(out, picture)


def _without_numpy(value):
    """The same structure with NumPy scalars as Python numbers."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {k: _without_numpy(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_numpy(v) for v in value)
    return value
