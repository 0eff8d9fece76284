"""The hook that plots losses and metrics of a training."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmattn.registry import HOOKS
from mmattn.visualization.curves import plot_curves, read_scalars


@HOOKS.register_module()
class CurvesHook(Hook):
    """Plots losses and a metric into `<work_dir>/curves.png`, after each validation and at the end.

    Args:
        metric: name of the validation metric to plot.
    """

    priority = 'VERY_LOW'  # after the logger has written its records

    def __init__(self, metric: str = 'mIoU') -> None:
        self.metric = metric
        self._plotted: dict[str, dict[int, float]] | None = None

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self._plot(runner)

    def after_train(self, runner: Runner) -> None:
        self._plot(runner)

    def _plot(self, runner: Runner) -> None:
        """Plot what was logged, unless the last plot shows it all."""
        if runner.rank == 0:
            scalars = read_scalars(runner.work_dir)
            if scalars != self._plotted:
                plot_curves(runner.work_dir, self.metric)
                self._plotted = scalars
