"""Progress of the tools: a bar with the time left on a terminal, lines of text elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from mmattn.compat import is_installed

T = TypeVar('T')


def track(items: Iterable[T], *, total: int | None, title: str) -> Iterator[T]:
    """Yield the items, showing progress and the time left on stderr.

    Args:
        items: items to iterate over.
        total: number of items; None if unknown.
        title: text in front of the bar.
    """
    if sys.stderr.isatty() and is_installed('rich'):
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(items, description=title, total=total, console=Console(stderr=True))
        return
    start = shown = time.monotonic()
    done = 0
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown > 10 and done != total:
            left = (
                f' of {total}, {(now - start) / done * (total - done):.0f} s left' if total else ''
            )
            print(f'{title}: {done}{left}', file=sys.stderr, flush=True)
            shown = now
    print(f'{title}: {done} in {time.monotonic() - start:.0f} s', file=sys.stderr, flush=True)


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step on stderr; call it with '' to clear the line.

    There is no animation, as the step may be a measurement. Without a terminal, a step is printed
    once it has taken five seconds.
    """
    timer = threading.Timer(0, lambda: None)

    def show(text: str) -> None:
        nonlocal timer
        if sys.stderr.isatty() and is_installed('rich'):
            print(f'\r\x1b[2K{text}', end='', file=sys.stderr, flush=True)
            return
        timer.cancel()
        if text:
            timer = threading.Timer(5, print, [text], dict(file=sys.stderr, flush=True))
            timer.daemon = True
            timer.start()

    try:
        yield show
    finally:
        show('')
