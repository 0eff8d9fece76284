"""What ends a training at once, and in order: signals, numbers that are not finite, no memory."""

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

_HEEDED = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT


# ---- signals -----------------------------------------------------------------------------------
class SignalHandler:
    """Hears SIGTERM, SIGUSR1 and SIGINT during a training; or a test, which they end.

    Attributes:
        training: else it is a test.
        heard: the name of the first signal, None as long as there was none.
        started: a step of this process has begun; before it, a signal ends the process at once.
        check_peers: raises if another process has ended the run: there is no step to finish.
    """

    def __init__(self, training: bool = True) -> None:
        self.training = training
        self.received: str | None = None
        self.started = False
        self.check_peers: Callable[[], None] = lambda: None
        self._process = os.getpid()

    def __call__(self, number: int, frame=None) -> None:
        if os.getpid() != self._process:
            _end_unless_loading(number)
            return
        again, self.received = self.received, signal.Signals(number).name
        if number == signal.SIGINT and (again or not self.started):
            raise KeyboardInterrupt
        self.check_peers()
        if not self.started:
            self.check_start()
        if number == signal.SIGINT:
            print_log('stopping behind this step; Ctrl-C again to stop at once', logger='current')

    def check_start(self) -> None:
        """Raise if a signal came before there was anything to save."""
        if self.received:
            when = ' before the first step, nothing to save' if self.training else ''
            raise Terminated(f'stopped by {self.received}{when}.')


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


@functools.cache  # once in a process, as it cannot be undone
def _follow_forks() -> None:
    os.register_at_fork(
        before=_before_fork, after_in_parent=_let_through, after_in_child=_in_the_fork
    )


def _end_unless_loading(number: int) -> None:
    """In a forked process: a pool ends its workers by a signal and waits until they are gone.

    A data worker goes on: `exact.init_worker` is about to have it ignore the signal.
    """
    if getattr(multiprocessing.current_process(), '_target', None) is not _worker_loop:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@contextlib.contextmanager
def handle_signals(training: bool = True) -> Iterator[SignalHandler]:
    """Hear signals inside the block; the handlers of before come back behind it."""
    listener = SignalHandler(training)
    if threading.current_thread() is not threading.main_thread():
        yield listener  # Python lets no other thread handle signals
        return
    _follow_forks()
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


@functools.cache
def end_children_at_exit() -> None:
    """Have the end of this process end its data workers, whatever they ignore."""
    atexit.register(_end_children)


def _end_children() -> None:
    """Data workers ignore the signal by which multiprocessing would end them."""
    children = [child for child in multiprocessing.active_children() if child.daemon]
    if children and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
    for child in children:
        child.kill()
