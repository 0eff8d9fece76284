"""Exit codes of the tools, the exceptions that carry them, and how a tool reports them.

Messages have the form `<what> in <where>: <why>. <what to do>`; the tool prints `error: ` before
it. An expected error shows a traceback only with -v.
"""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from enum import IntEnum

from mmattn import compat


class Exit(IntEnum):
    """Exit codes of all tools."""

    OK = 0
    BUG = 1  # an unexpected exception
    USAGE = 2  # command line or config
    DATA = 3  # data invalid or missing
    CHECKPOINT = 4  # checkpoint missing, corrupt, unsafe or of another model
    NONFINITE = 5  # loss, gradient or weight is nan or inf
    MEMORY = 6  # out of memory, device or host
    IO = 7  # disk full, permission, input or output, shared memory
    DISTRIBUTED = 8  # a process of a distributed run failed or did not answer
    STOPPED = 75  # by a signal, with a checkpoint saved: resume it
    INTERRUPTED = 130  # by SIGINT, nothing new to save
    TERMINATED = 143  # by SIGTERM, nothing new to save


class MmattnError(Exception):
    """An error whose message is written for the user; subclasses set the exit code.

    Args:
        message: one or more sentences, in one line.
        lines: details, printed below the message.
    """

    code = Exit.BUG

    def __init__(self, message: str = '', lines: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.lines = list(lines)

    def __str__(self) -> str:
        return '\n'.join([str(self.args[0]), *self.lines])


class UsageError(MmattnError):
    """The command line or the config is wrong."""

    code = Exit.USAGE


class DataError(MmattnError):
    """A data set is missing or invalid."""

    code = Exit.DATA


class CheckpointError(MmattnError):
    """A checkpoint is missing, damaged, unsafe or of another model."""

    code = Exit.CHECKPOINT


class WriteError(MmattnError):
    """A file or folder cannot be written."""

    code = Exit.IO


def cannot_write(path: str | os.PathLike, error: OSError, remedy: str = '') -> WriteError:
    """A `WriteError` for an error of the operating system.

    Args:
        path: the file or folder.
        error: what the operating system raised.
        remedy: a sentence, such as 'Choose another --out.'.
    """
    reason = (error.strerror or str(error)).lower()
    return WriteError(f'cannot write {path}: {reason}.{f" {remedy}" if remedy else ""}')


class NonFiniteError(MmattnError):
    """A loss, gradient or weight is nan or inf."""

    code = Exit.NONFINITE


class MemoryShortage(MmattnError):
    """The device or the host has too little memory for a step."""

    code = Exit.MEMORY


class DistributedError(MmattnError):
    """A process of a distributed run failed or did not answer; `code` is its own if known."""

    code = Exit.DISTRIBUTED


class Stopped(MmattnError):
    """A signal ended a training, and a checkpoint is saved."""

    code = Exit.STOPPED


class Terminated(MmattnError):
    """A signal ended a training before there was anything to save."""

    code = Exit.TERMINATED


_IO = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.EDQUOT}


def explain(error: BaseException) -> tuple[Exit, str] | None:
    """Exit code and message of an expected error; None for a bug."""
    if isinstance(error, MmattnError):
        return error.code, str(error.args[0])
    if isinstance(error, ImportError) and (problem := compat.import_problem(error)):
        return Exit.USAGE, problem
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED, 'interrupted'
    if isinstance(error, OSError) and error.errno in _IO:
        reason = error.strerror.lower() if error.strerror else 'failed'
        return Exit.IO, f'cannot access {error.filename or "a file"}: {reason}.'
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == 'OutOfMemoryError'
        or "can't allocate memory" in str(error)
    ):
        reason = f': {error}' if isinstance(error, MemoryError) and str(error) else ''
        return (
            Exit.MEMORY,
            f'out of memory{reason}. Lower the batch size or the size of the images.',
        )
    return None


def printable(text: str) -> str:
    """Escape line breaks and control characters, so that a text is one line on a terminal."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def run_tool(task: Callable[[], None], *, verbose: bool = False) -> int:
    """Run the task of a tool; print its error, if any, on stderr.

    Args:
        task: the function to run.
        verbose: print a traceback for expected errors as well.

    Returns:
        the exit code.
    """
    try:
        task()
    except BaseException as error:
        if isinstance(error, BrokenPipeError):  # the reader closed the pipe, e.g. `tool | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return Exit.OK
        known = explain(error)
        if known is None:
            if isinstance(error, SystemExit):
                raise
            traceback.print_exc()
            print(
                f'error: unexpected {type(error).__name__}: this is a bug of mmattn, please report '
                'it with the lines above.',
                file=sys.stderr,
            )
            return Exit.BUG
        if verbose:
            traceback.print_exc()
        code, message = known
        text = '\n'.join(map(printable, [f'error: {message}', *getattr(error, 'lines', ())]))
        print(text, file=sys.stderr, flush=True)
        return code
    return Exit.OK
