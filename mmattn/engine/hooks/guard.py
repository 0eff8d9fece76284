"""The hook that ends a training in order after a signal, and keeps what explains a failed step."""

import torch
from mmengine.dist import all_reduce, barrier, get_dist_info
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper

from mmattn.engine.resume.rng import get_rng_state
from mmattn.engine.signals import SignalHandler
from mmattn.errors import NonFiniteError, Stopped

_SKIPPED = 50  # steps that a gradient scaler may skip in a row


# ---- what a step is watched for ----------------------------------------------------------------
class GuardHook(Hook):
    """Stops a training that was told to, once its step is done and saved; and remembers its batch.

    Attributes:
        listener: hears the signals.
        batch, randomness: of the step that is being made: data, and the generators before it.
    """

    priority = 'LOWEST'  # behind the hook that saves

    def __init__(self) -> None:
        self.signal_handler = SignalHandler()
        self.batch = self.randomness = None
        self.skipped, self._scale = 0, None

    def before_train(self, runner) -> None:
        self.signal_handler.check_start()
        runner.check_savable()
        runner.catch_up()

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        runner.note_validated()

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if not self.signal_handler.started:
            self.signal_handler.check_start()
            self.signal_handler.started = True
        self.batch, self.randomness = data_batch, get_rng_state()
        if self._scale is None:
            self._scale = _scale(runner.optim_wrapper)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._count_skips(runner)
        heard = self.signal_handler.received is not None
        if get_dist_info()[1] > 1:  # one that was told stops all, at the same step
            flag = torch.tensor(int(heard))
            all_reduce(flag, 'max')
            heard = bool(flag)
        if heard and runner.optim_wrapper.should_update():
            self._stop(runner, runner.iter + 1)

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.signal_handler.received and self.signal_handler.started:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook._swap_ema_parameters()  # a validation runs on the average
            self._stop(runner, runner.iter)

    def _stop(self, runner, step: int) -> None:
        saved = runner.save_now(step)
        if runner.train_loop.iter < step:  # in a step, so all are here
            barrier()  # the launcher ends all when one ends, and rank 0 is writing
        name = self.signal_handler.received or 'a signal to another process'
        raise Stopped(
            f'stopped by {name} at iteration {step}; saved {saved.stem}. Run again with --resume.'
        )

    def _count_skips(self, runner) -> None:
        scale = _scale(runner.optim_wrapper)
        if scale is None:
            return
        if scale < self._scale:
            self.skipped += 1
            runner.logger.info(f'gradient scaler skipped a step, scale {scale:g}')
        else:
            self.skipped = 0
        self._scale = scale
        if self.skipped >= _SKIPPED:
            raise NonFiniteError(
                f'gradient scaler skipped {self.skipped} steps in a row at iteration '
                f'{runner.iter + 1}, scale {scale:g}. Train without --amp, or lower the learning '
                'rate.'
            )


def _scale(wrapper: OptimWrapper) -> float | None:
    """Of the gradient scaler; None without one."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    if scaler is None or not scaler.is_enabled():
        return None
    return torch.tensor(scaler.get_scale()).item()  # as rounded as it is behind the first step
