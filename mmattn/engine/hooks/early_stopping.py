"""The state of early stopping, so that a resumed run stops where an uninterrupted one would.

mmengine's hook keeps it in memory alone. It is a fact of a checkpoint's manifest: a validation
comes after the save at its iteration, and changes it.
"""

from collections.abc import Iterable

from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.runner import Runner


def early_stopping_states(hooks: Iterable[Hook]) -> list[list[float]]:
    """Validations without improvement, and the best value, of each `EarlyStoppingHook`."""
    return [[hook.wait_count, float(hook.best_score)] for hook in _early_stopping(hooks)]


def restore_early_stopping(runner: Runner, states: list[list[float]]) -> None:
    """Continue with the states of a checkpoint; a run that was stopped stays so.

    With more patience than before, or another threshold, a stopped run goes on.

    Args:
        runner: runner with its training loop.
        states: result of `early_stopping_states`; without effect for another number of hooks.
    """
    hooks = _early_stopping(runner.hooks)
    if len(hooks) != len(states):
        return
    for hook, (count, best) in zip(hooks, states):
        hook.wait_count, hook.best_score = int(count), best
        threshold = hook.stopping_threshold
        reached = threshold is not None and hook.rule_map[hook.rule](best, threshold)
        if reached or hook.wait_count >= hook.patience:
            runner.train_loop.stop_training = True
            runner.logger.info(
                f'early stopping has ended this run: {hook.monitor} is {best:g} at best, after '
                f'{hook.wait_count} validations without improvement'
            )


def _early_stopping(hooks: Iterable[Hook]) -> list[EarlyStoppingHook]:
    return [hook for hook in hooks if isinstance(hook, EarlyStoppingHook)]
