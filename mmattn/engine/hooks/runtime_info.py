"""The hook that logs the numbers of a step."""

from mmengine.hooks import Hook, LoggerHook
from mmengine.hooks import RuntimeInfoHook as EngineRuntimeInfoHook

from mmattn.engine.history import log_number
from mmattn.engine.model_wrappers import unwrap_model
from mmattn.engine.resume.loops import EpochLoop
from mmattn.models.fused_losses import measure_accuracy
from mmattn.registry import HOOKS


@HOOKS.register_module()
class RuntimeInfoHook(EngineRuntimeInfoHook):
    """mmengine's hook, but what is only logged is neither computed nor read in other steps.

    Losses on a GPU are read when they are asked for. Accuracies of pixels are measured in the steps
    that a line of the log is the mean of.
    """

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        super().before_train_iter(runner, batch_idx, data_batch)
        measure_accuracy(unwrap_model(runner.model), _is_logged(runner, batch_idx))

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        for key, value in (outputs or {}).items():
            log_number(runner.message_hub, f'train/{key}', value)


def _is_logged(runner, batch_idx: int) -> bool:
    """Whether a line of the log will be about this step, among others."""
    loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
    processor = runner.log_processor
    if not loggers or processor.custom_cfg:  # statistics of a user over any number of steps
        return bool(loggers)
    by_epoch = isinstance(runner.train_loop, EpochLoop)
    step = batch_idx if by_epoch else runner.iter
    to_go = [-(step + 1) % hook.interval for hook in loggers]
    if by_epoch:  # the last step of an epoch may be logged, too
        to_go.append(len(runner.train_dataloader) - 1 - batch_idx)
    return min(to_go) < processor.window_size


def adapt_runtime_info_hook(hook: Hook) -> Hook:
    """Make mmengine's hook this one; any other is returned as it is."""
    if type(hook) is EngineRuntimeInfoHook:
        hook.__class__ = RuntimeInfoHook
    return hook
