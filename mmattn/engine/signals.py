"""What ends a training at once, and in order: signals, numbers that are not finite, no memory."""

import atexit
import contextlib
import json
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType

import torch
from mmengine.dist import all_reduce, barrier, get_dist_info
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn
from torch.utils.data._utils.worker import _worker_loop

from mmattn.checkpoint.write import last_good, tensors
from mmattn.errors import MemoryShortage, NonFiniteError, Stopped, Terminated

from .resume.data import restore, snapshot

_HEEDED = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT
_SKIPPED = 50  # steps that a gradient scaler may skip in a row
_SHOWN = 5


# ---- signals -----------------------------------------------------------------------------------
class Listener:
    """Hears SIGTERM, SIGUSR1 and SIGINT during a training; or a test, which they end.

    Attributes:
        training: else it is a test.
        heard: the name of the first signal, None as long as there was none.
        started: a step of this process has begun; before it, a signal ends the process at once.
        check_others: raises if another process has ended the run: there is no step to finish.
    """

    def __init__(self, training: bool = True) -> None:
        self.training = training
        self.heard: str | None = None
        self.started = False
        self.check_others: Callable[[], None] = lambda: None
        self._process = os.getpid()

    def __call__(self, number: int, frame=None) -> None:
        if os.getpid() != self._process:
            _end_unless_loading(number)
            return
        again, self.heard = self.heard, signal.Signals(number).name
        if number == signal.SIGINT and (again or not self.started):
            raise KeyboardInterrupt
        self.check_others()
        if not self.started:
            self.check_start()
        if number == signal.SIGINT:
            print_log('stopping behind this step; Ctrl-C again to stop at once', logger='current')

    def check_start(self) -> None:
        """Raise if a signal came before there was anything to save."""
        if self.heard:
            when = ' before the first step, nothing to save' if self.training else ''
            raise Terminated(f'stopped by {self.heard}{when}.')


def _before_fork() -> None:
    """Hold signals back while a process is forked, so that none meets a handler half replaced."""
    _masks.held = signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED) if _before else None


def _let_through() -> None:
    if _masks.held is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.held)


def _in_the_fork() -> None:
    """In a forked process, give the signals back: a handler in Python may run too late to end it.

    Data workers ignore them from the start.
    """
    frame, names = sys._getframe(), set()
    while frame is not None:
        names.add(frame.f_globals.get('__name__'))
        frame = frame.f_back
    loading = 'torch.utils.data.dataloader' in names
    for number, handler in _before.items():
        signal.signal(number, signal.SIG_IGN if loading else handler)
    _let_through()


_before: dict = {}  # signal -> handler, of what the latest listener has replaced
_masks = threading.local()
os.register_at_fork(before=_before_fork, after_in_parent=_let_through, after_in_child=_in_the_fork)


def _end_unless_loading(number: int) -> None:
    """In a forked process: a pool ends its workers by a signal and waits until they are gone.

    A data worker goes on: `exact.start_worker` is about to have it ignore the signal.
    """
    if getattr(multiprocessing.current_process(), '_target', None) is not _worker_loop:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@contextlib.contextmanager
def listening(training: bool = True) -> Iterator[Listener]:
    """Hear signals inside the block; the handlers of before come back behind it."""
    listener = Listener(training)
    if threading.current_thread() is not threading.main_thread():
        yield listener  # Python lets no other thread handle signals
        return
    before = {number: signal.signal(number, listener) for number in _HEEDED}
    outer = dict(_before)
    _before.update(before)
    try:
        yield listener
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _before.clear()
        _before.update(outer)


@atexit.register
def _end_children() -> None:
    """Data workers ignore the signal by which multiprocessing would end them."""
    children = [child for child in multiprocessing.active_children() if child.daemon]
    if children and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
    for child in children:
        child.kill()


# ---- what a step is watched for ----------------------------------------------------------------
class GuardHook(Hook):
    """Stops a training that was told to, once its step is done and saved; and remembers its batch.

    Attributes:
        listener: hears the signals.
        batch, randomness: of the step that is being made: data, and the generators before it.
    """

    priority = 'LOWEST'  # behind the hook that saves

    def __init__(self) -> None:
        self.listener = Listener()
        self.batch = self.randomness = None
        self.skipped, self._scale = 0, None

    def before_train(self, runner) -> None:
        self.listener.check_start()
        runner.check_savable()
        runner.catch_up()

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        runner.note_validated()

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if not self.listener.started:
            self.listener.check_start()
            self.listener.started = True
        self.batch, self.randomness = data_batch, snapshot()
        if self._scale is None:
            self._scale = _scale(runner.optim_wrapper)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._count_skips(runner)
        heard = self.listener.heard is not None
        if get_dist_info()[1] > 1:  # one that was told stops all, at the same step
            flag = torch.tensor(int(heard))
            all_reduce(flag, 'max')
            heard = bool(flag)
        if heard and runner.optim_wrapper.should_update():
            self._stop(runner, runner.iter + 1)

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.listener.heard and self.listener.started:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook._swap_ema_parameters()  # a validation runs on the average
            self._stop(runner, runner.iter)

    def _stop(self, runner, step: int) -> None:
        saved = runner.save_now(step)
        if runner.train_loop.iter < step:  # in a step, so all are here
            barrier()  # the launcher ends all when one ends, and rank 0 is writing
        raise Stopped(
            f'stopped by {self.listener.heard or "a signal to another process"} at iteration '
            f'{step}; saved {saved.stem}. Run again with --resume.'
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


# ---- numbers -----------------------------------------------------------------------------------
def watch(wrapper: OptimWrapper, found: Callable[[str, float], None]) -> None:
    """Have an optimizer wrapper look at loss and gradients before it changes a weight.

    Under a gradient scaler a gradient that is not finite skips the step: that is its work.

    Args:
        wrapper: changed.
        found: called with 'loss' or 'gradient norm' and its value, if that is not finite.
    """
    backward, step = wrapper.backward, wrapper.step

    def watched_backward(self: OptimWrapper, loss: Tensor, **kwargs) -> None:
        backward(loss, **kwargs)
        value = loss.item()  # behind the backward pass, so that a GPU does not wait between
        if not math.isfinite(value):
            found('loss', value)

    def watched_step(self: OptimWrapper, **kwargs) -> None:
        if not isinstance(wrapper, AmpOptimWrapper):
            norm = _norm(wrapper)
            if not math.isfinite(norm):
                found('gradient norm', norm)
        step(**kwargs)

    wrapper.backward = MethodType(watched_backward, wrapper)
    wrapper.step = MethodType(watched_step, wrapper)  # a method, as mmengine's schedulers want it


def _norm(wrapper: OptimWrapper) -> float:
    """The largest gradient where a sum of gradients is not finite; else 0: sums are fast."""
    groups = wrapper.optimizer.param_groups
    gradients = [p.grad for group in groups for p in group['params'] if p.grad is not None]
    if not gradients:
        return 0.0
    sums = torch.stack([g.sum().float().to(gradients[0].device) for g in gradients])
    if sums.isfinite().all():
        return 0.0
    norms = torch._foreach_norm(gradients, math.inf)
    return torch.stack([norm.float().to(norms[0].device) for norm in norms]).max().item()


def explain(runner, what: str, value: float) -> None:
    """Raise what a loss or gradient that is not finite means: which loss, module and samples."""
    hook = runner.guard
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    step = runner.iter + 1
    facts = dict(what=what, value=str(value), iteration=step, samples=samples(hook.batch))
    if not _synchronises(model):
        facts.update(_again(model, hook.batch, hook.randomness, what))
    losses = ', '.join(f'{k}={v:.4g}' for k, v in facts.get('losses', {}).items())
    text = f'{what} is {value} at iteration {step}' + (f': {losses}' if losses else '')
    if facts.get('module') is not None:
        text += f'; first non-finite output: {facts["module"] or "the network itself"}'
    if facts.get('parameters'):
        text += f'; first in {facts["parameters"][0]}'
    shown = facts['samples'][:_SHOWN]
    text += f'; samples {", ".join(shown)}' if shown else ''
    path = Path(runner.work_dir) / 'nonfinite.json'
    if runner.rank == 0:
        path.write_text(json.dumps(facts, indent=1) + '\n', encoding='utf-8')
    raise NonFiniteError(
        f'{text}. No weight was changed. Look at these samples, lower the learning rate or clip '
        f'gradients; details are in {path}.'
    )


def samples(batch) -> list[str]:
    """What the samples of a batch are called: ids, or else file names."""
    found = batch.get('data_samples') if isinstance(batch, dict) else None
    names = []
    for sample in found or []:
        name = sample.get('img_id', None)
        path = sample.get('img_path', None)
        names.append(str(name if name is not None else Path(path).name if path else '?'))
    return names


def _synchronises(model: nn.Module) -> bool:
    """Whether a forward pass waits for other processes, which may not come."""
    many = get_dist_info()[1] > 1
    return many and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


def _again(model: nn.Module, batch, randomness: Tensor, what: str) -> dict:
    """Run the step again with the same randomness, watching every module."""
    first: list[str] = []
    paths = {module: path for path, module in model.named_modules()}

    def look(module: nn.Module, _, output) -> None:
        if not first and any(
            value.is_floating_point() and not value.isfinite().all() for _, value in tensors(output)
        ):
            first.append(paths[module])

    handles = [module.register_forward_hook(look) for module in paths]
    restore(randomness)
    try:
        data = model.data_preprocessor(batch, True)
        losses = model._run_forward(data, mode='loss')
        total, parts = model.parse_losses(losses)
        if what != 'loss':
            model.zero_grad()
            total.backward()
    finally:
        for handle in handles:
            handle.remove()
    found = dict(losses={k: float(v) for k, v in parts.items()})
    if what == 'loss':
        if first:
            found['module'] = first[0]
        return found
    bad = [k for k, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    return dict(found, parameters=bad[::-1])  # a backward pass meets the last ones first


def _finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())


# ---- memory ------------------------------------------------------------------------------------
def out_of_memory(error: BaseException) -> bool:
    return isinstance(
        error, MemoryError | torch.OutOfMemoryError
    ) or "can't allocate memory" in str(error)


def shortage(runner, error: BaseException) -> MemoryShortage:
    """What a lack of memory means: how large the batch was, and what to change."""
    hook = runner.guard
    parts, batch = [], hook.batch if isinstance(hook.batch, dict) else {}
    images = batch.get('inputs', [])
    if len(images):
        height, width = (max(int(image.shape[i]) for image in images) for i in (-2, -1))
        parts += [f'batch {len(images)}', f'image {width}x{height}']
    objects = [s.gt_instances for s in batch.get('data_samples', []) if 'gt_instances' in s]
    if objects:
        parts.append(f'{sum(map(len, objects))} objects')
    good = last_good(Path(runner.work_dir))
    about = f' ({error})' if isinstance(error, MemoryError) and str(error) else ''
    return MemoryShortage(
        f'out of memory at iteration {runner.iter + 1}{about}: {", ".join(parts)}; last checkpoint '
        f'{good.stem if good else "none"}. Lower train_dataloader.batch_size or the size of the '
        'images, or set activation_checkpointing in the config.'
    )


def warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
