"""The hook of a trial: it reports each validation, and ends trainings that are not worth it."""

from typing import TYPE_CHECKING

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmattn.errors import UsageError

if TYPE_CHECKING:
    from optuna import Trial


STOPPED_EARLY = 'stopped_early'  # attribute of a trial, as its process may end before it says so


class MetricMissing(UsageError):
    """The validation gives no metric of the name: no trial can succeed."""


class TrialHook(Hook):
    """Reports each validation to Optuna, and ends a training that its pruner gives up.

    Args:
        trial: trial of the study.
        metric: name of the metric; None for the first of the validation.
    """

    priority = 'VERY_LOW'  # before the hook that marks a validation as done, so that none is lost

    def __init__(self, trial: 'Trial', metric: str | None = None) -> None:
        self.trial, self.metric = trial, metric

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        names = list(metrics or {})
        name = self.metric or next(iter(names), None)
        if name not in names:
            given = ', '.join(names) or 'no metric'
            raise MetricMissing(f'--metric {name} is not validated: val_evaluator gives {given}.')
        self.metric = name
        self.trial.report(float(metrics[name]), runner.iter)
        if self.trial.should_prune():
            self.trial.set_user_attr(STOPPED_EARLY, True)
            runner.train_loop.stop_training = True
            runner.logger.info(f'trial stopped: {name} is worse than the median of those before')
