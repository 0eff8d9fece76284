"""The hook that plots losses and metrics of a training."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmattn.registry import HOOKS
from mmattn.visualization.curves import plot_curves


@HOOKS.register_module()
class CurvesHook(Hook):
    """Plots losses and a metric into `<work_dir>/curves.png`, after each validation and at the end.

    Args:
        metric: name of the validation metric to plot.
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
