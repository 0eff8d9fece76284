"""The hook that ends a training in order after a signal, and keeps what explains a failed step."""

import torch
from mmengine.dist import all_reduce, barrier, get_dist_info
from mmengine.hooks import EMAHook, Hook

from mmattn.engine.late_values import LateValues, is_late
from mmattn.engine.optimizer import gradient_scaler, loss_scale
from mmattn.engine.resume.rng import capture_rng_state
from mmattn.engine.signals import SignalHandler
from mmattn.errors import NonFiniteError, Stopped

_MAX_SKIPPED = 50  # consecutive steps that a gradient scaler may skip


class GuardHook(Hook):
    """Saves and stops a training after a signal; keeps the current batch for error messages.

    Attributes:
        signal_handler: receives the signals.
        batch: data of the current step.
        skipped: consecutive steps that the gradient scaler has skipped.
    """

    priority = 'LOWEST'  # after the hook that saves

    def __init__(self) -> None:
        self.signal_handler = SignalHandler()
        self.batch = None
        self.skipped, self._scale = 0, None
        self._steps: dict[int, tuple] = {}  # iteration -> data and generators; the last two
        self._scales, self._stops = LateValues(), LateValues()

    def step(self, iteration: int) -> tuple:
        """Data of a step, the current one or the one before, and the generators at its start."""
        return self._steps[iteration]

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
        iteration = runner.iter + 1
        self.batch = data_batch
        self._steps = {k: v for k, v in self._steps.items() if k == iteration - 1}
        self._steps[iteration] = data_batch, capture_rng_state()
        if runner.nonfinite:
            runner.nonfinite.iteration = iteration
        if self._scale is None:
            self._scale = loss_scale(runner.optim_wrapper)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.nonfinite:
            runner.nonfinite.poll()
        self._count_skips(runner)
        if self._stopping(runner) and runner.optim_wrapper.should_update():
            self._stop(runner, runner.iter + 1)

    def after_train(self, runner) -> None:
        if runner.nonfinite:
            runner.nonfinite.flush()

    def before_val(self, runner) -> None:
        if runner.nonfinite:
            runner.nonfinite.flush()

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

    def _stopping(self, runner) -> bool:
        """Whether a signal came; one to any process stops all, after the same step."""
        received = self.signal_handler.received is not None
        if get_dist_info()[1] == 1:
            return received
        device = next(runner.model.parameters()).device
        flag = torch.full((1,), float(received), device=device)
        all_reduce(flag, 'max')
        if not is_late(device):
            return bool(flag)
        before = self._stops.exchange(None, flag)
        return before is not None and bool(before[1][0])

    def _count_skips(self, runner) -> None:
        """Log a step that the gradient scaler skipped; raise after too many in a row."""
        scaler = gradient_scaler(runner.optim_wrapper)
        if scaler is None:
            return
        scale = scaler._scale
        if scale is not None and is_late(scale.device):  # that of the step before
            before = self._scales.exchange(None, scale.reshape(1))
            scale = self._scale if before is None else before[1][0]
        else:
            scale = loss_scale(runner.optim_wrapper)
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
