"""Hooks of every training run."""

import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmattn.registry import HOOKS
from mmattn.visualization.curves import plot_curves

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
class PlainCheckpointHook(Hook):
    """Keeps checkpoints loadable with `weights_only=True`: no object but tensors and plain types.

    mmengine's message hub is the one part that holds others (`HistoryBuffer`, the smoothing windows
    of the log, which are of no use to a resumed run).
    """

    priority = 'LOWEST'  # after every hook that adds to the checkpoint

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        hub = _without_numpy(checkpoint['message_hub'])
        info = {k: v for k, v in hub['runtime_info'].items() if isinstance(v, _PLAIN)}
        keys = {k: v for k, v in hub['resumed_keys'].items() if k in info}
        checkpoint['message_hub'] = dict(log_scalars={}, runtime_info=info, resumed_keys=keys)
        for name in 'meta', 'param_schedulers', 'optimizer':
            if name in checkpoint:
                checkpoint[name] = _without_numpy(checkpoint[name])


def _without_numpy(value):
    """The same structure with NumPy scalars as Python numbers."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {k: _without_numpy(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_numpy(v) for v in value)
    return value
