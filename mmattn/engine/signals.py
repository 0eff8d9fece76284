"""Orderly shutdown: SIGTERM, SIGUSR1 and SIGINT end a training after its step, a test at once."""

import atexit
import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from mmengine.logging import print_log
from torch.utils.data._utils.worker import _worker_loop

from mmattn.errors import Terminated

_SIGNALS = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT


class SignalInterrupt(BaseException):
    """Carries an error from a signal handler past the `except Exception` of interrupted code.

    Like `KeyboardInterrupt`, it is no `Exception`: a library would report it as a failure of its
    own, or go on.

    Args:
        error: the error to raise where the handling of signals ends.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class SignalHandler:
    """Handles SIGTERM, SIGUSR1 and SIGINT during a training or a test.

    A training goes on until its step is done; `GuardHook` then saves and stops. A test, or a
    training before its first step, ends at once.

    Args:
        training: False for a test.

    Attributes:
        received: name of the last signal, None before the first.
        started: the first step of this process has begun.
        check_peers: raises if another process has ended the run, so that no step can finish.
    """

    def __init__(self, training: bool = True) -> None:
        self.training = training
        self.received: str | None = None
        self.started = False
        self.check_peers: Callable[[], None] = lambda: None
        self._process = os.getpid()

    def __call__(self, number: int, frame=None) -> None:
        if os.getpid() != self._process:
            _end_unless_data_worker(number)
            return
        previous, self.received = self.received, signal.Signals(number).name
        if number == signal.SIGINT and (previous or not self.started):
            raise KeyboardInterrupt
        try:
            self.check_peers()
            if not self.started:
                self.check_start()
        except Exception as error:
            raise SignalInterrupt(error) from None
        if number == signal.SIGINT:
            print_log('stopping after this step; Ctrl-C again to stop at once', logger='current')

    def check_start(self) -> None:
        """Raise `Terminated` if a signal came before there was anything to save."""
        if self.received:
            when = ' before the first step, nothing to save' if self.training else ''
            raise Terminated(f'stopped by {self.received}{when}.')


@contextlib.contextmanager
def handle_signals(training: bool = True) -> Iterator[SignalHandler]:
    """Handle signals inside the block; the previous handlers are restored after it.

    Args:
        training: False for a test.

    Raises:
        Terminated: by a signal before the first step of a training, or during a test.
        MmattnError: by a signal after another process has failed; see `check_peers`.
    """
    handler = SignalHandler(training)
    if threading.current_thread() is not threading.main_thread():
        yield handler  # Python sets signal handlers in the main thread only
        return
    _register_fork_handlers()
    replaced = {number: signal.signal(number, handler) for number in _SIGNALS}
    outer = dict(_replaced)
    _replaced.update(replaced)
    try:
        yield handler
    except SignalInterrupt as interrupt:
        raise interrupt.error from None
    finally:
        for number, previous in replaced.items():
            signal.signal(number, previous)
        _replaced.clear()
        _replaced.update(outer)


# ---- child processes ---------------------------------------------------------------------------
_replaced: dict = {}  # signal -> handler that the innermost `handle_signals` has replaced
_masks = threading.local()


def _before_fork() -> None:
    """Block signals during a fork: none may arrive while handlers are being restored."""
    _masks.previous = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS) if _replaced else None


def _unblock_signals() -> None:
    if _masks.previous is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.previous)


def _after_fork_in_child() -> None:
    """Restore the previous handlers: one in Python may run too late to end a child process.

    Data workers ignore the signals from the start.
    """
    frame, names = sys._getframe(), set()
    while frame is not None:
        names.add(frame.f_globals.get('__name__'))
        frame = frame.f_back
    data_worker = 'torch.utils.data.dataloader' in names
    for number, handler in _replaced.items():
        signal.signal(number, signal.SIG_IGN if data_worker else handler)
    _unblock_signals()


@functools.cache  # once per process, as it cannot be undone
def _register_fork_handlers() -> None:
    os.register_at_fork(
        before=_before_fork, after_in_parent=_unblock_signals, after_in_child=_after_fork_in_child
    )


def _end_unless_data_worker(number: int) -> None:
    """End a forked process: a pool signals its workers and waits until they are gone.

    A data worker goes on: `resume.data.init_worker` is about to make it ignore the signal.
    """
    if getattr(multiprocessing.current_process(), '_target', None) is not _worker_loop:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@functools.cache
def kill_children_at_exit() -> None:
    """Have this process kill its data workers when it exits."""
    atexit.register(_kill_children)


def _kill_children() -> None:
    """Data workers ignore the signal that multiprocessing would send them."""
    children = [child for child in multiprocessing.active_children() if child.daemon]
    if children and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
    for child in children:
        child.kill()
