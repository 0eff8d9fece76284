"""The hook that ends a training in order after a signal, and keeps what explains a failed step."""

import torch
from mmengine.dist import all_reduce, barrier, get_dist_info
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper

from mmattn.engine.resume.rng import get_rng_state
from mmattn.engine.signals import SignalHandler
from mmattn.errors import NonFiniteError, Stopped

_MAX_SKIPPED = 50  # consecutive steps that a gradient scaler may skip


class GuardHook(Hook):
    """Saves and stops a training after a signal; keeps the current batch for error messages.

    Attributes:
        signal_handler: receives the signals.
        batch: data of the current step.
        rng_state: state of the random number generators before the current step.
        skipped: consecutive steps that the gradient scaler has skipped.
    """

    priority = 'LOWEST'  # after the hook that saves

    def __init__(self) -> None:
        self.signal_handler = SignalHandler()
        self.batch = self.rng_state = None
        self.skipped, self._scale = 0, None

    def before_train(self, runner) -> None:
        self.signal_handler.check_start()
        runner.check_savable()
        runner.run_missed_validation()

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        runner.mark_validated()

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if not self.signal_handler.started:
            self.signal_handler.check_start()
            self.signal_handler.started = True
        self.batch, self.rng_state = data_batch, get_rng_state()
        if self._scale is None:
            self._scale = _loss_scale(runner.optim_wrapper)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._count_skips(runner)
        stopping = self.signal_handler.received is not None
        if get_dist_info()[1] > 1:  # a signal to one process stops all, after the same step
            flag = torch.tensor(int(stopping))
            all_reduce(flag, 'max')
            stopping = bool(flag)
        if stopping and runner.optim_wrapper.should_update():
            self._stop(runner, runner.iter + 1)

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.signal_handler.received and self.signal_handler.started:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook._swap_ema_parameters()  # a validation runs on the averaged weights
            self._stop(runner, runner.iter)

    def _stop(self, runner, step: int) -> None:
        saved = runner.save_now(step)
        if runner.train_loop.iter < step:  # called from a step, which all processes reach
            barrier()  # torchrun kills all ranks when one exits; wait until rank 0 has saved
        name = self.signal_handler.received or 'a signal to another process'
        raise Stopped(
            f'stopped by {name} at iteration {step}; saved {saved.stem}. Run again with --resume.'
        )

    def _count_skips(self, runner) -> None:
        """Log a step that the gradient scaler skipped; raise after too many in a row."""
        scale = _loss_scale(runner.optim_wrapper)
        if scale is None:
            return
        if scale < self._scale:
            self.skipped += 1
            runner.logger.info(f'gradient scaler skipped a step, scale {scale:g}')
        else:
            self.skipped = 0
        self._scale = scale
        if self.skipped >= _MAX_SKIPPED:
            raise NonFiniteError(
                f'gradient scaler skipped {self.skipped} steps in a row at iteration '
                f'{runner.iter + 1}, scale {scale:g}. Train without --amp, or lower the learning '
                'rate.'
            )


def _loss_scale(wrapper: OptimWrapper) -> float | None:
    """Scale of the gradient scaler; None without one."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    if scaler is None or not scaler.is_enabled():
        return None
    return torch.tensor(scaler.get_scale()).item()  # rounded to fp32, as after the first step
