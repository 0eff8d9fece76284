"""Exit status of a distributed run: `exit_status.json` in its work dir.

torchrun exits with 1 whatever the exit codes of its processes are, so the real one is kept in this
file. Every process tries to write it and the first one wins: later failures are mostly consequences
of the first.
"""

import contextlib
import json
import os
import time
from pathlib import Path

from mmattn.errors import Exit

STATUS_FILE = 'exit_status.json'


def write_status(work_dir: Path, rank: int, code: int, message: str, step: int) -> None:
    """Record how this process ended, unless another process was first.

    Args:
        work_dir: folder of the run; created if missing.
        rank: rank of this process.
        code: exit code, see `Exit`.
        message: the error in one sentence.
        step: current iteration, counted from 1; 0 before the first.
    """
    record = dict(rank=rank, code=int(code), message=message, step=step, time=time.time())
    work_dir.mkdir(parents=True, exist_ok=True)
    part = work_dir / f'{STATUS_FILE}.{rank}'
    part.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
    try:
        with contextlib.suppress(FileExistsError):
            os.link(part, work_dir / STATUS_FILE)  # atomic, and fails if the file exists
    finally:
        part.unlink()


def read_status(work_dir: Path) -> dict | None:
    """The record of the first process that ended; None if there is no valid one."""
    try:
        record = json.loads((work_dir / STATUS_FILE).read_text(encoding='utf-8'))
        valid = record['code'] in list(Exit) and {'rank', 'message'} <= set(record)
        return record if valid else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def clear_status(work_dir: Path) -> None:
    """Remove the record of an earlier run."""
    with contextlib.suppress(OSError):
        (work_dir / STATUS_FILE).unlink(missing_ok=True)


def exit_code_and_message(work_dir: Path) -> tuple[int, str]:
    """Exit code and message of a run; 8 (`Exit.DISTRIBUTED`) if no process reported one."""
    record = read_status(work_dir)
    if record is None:
        return Exit.DISTRIBUTED, (
            f'no process reported an exit status in {work_dir}: all were killed, or none started. '
            'Look at the log of the launcher; run again with --resume.'
        )
    return record['code'], record['message']
