"""How a run of several processes ended: `exit_status.json` in its work dir.

torchrun ends with 1 whatever a process ended with; this file is what tells. All processes write it,
and the first counts: what comes behind it is mostly its echo.
"""

import contextlib
import json
import os
import time
from pathlib import Path

from mmattn.errors import Exit

STATUS = 'exit_status.json'


def write_status(folder: Path, rank: int, code: int, message: str, step: int) -> None:
    """Leave a word, unless another process was first."""
    record = dict(rank=rank, code=int(code), message=message, step=step, time=time.time())
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f'{STATUS}.{rank}'
    part.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
    try:
        with contextlib.suppress(FileExistsError):
            os.link(part, folder / STATUS)  # whole or not at all, and only once
    finally:
        part.unlink()


def read_status(folder: Path) -> dict | None:
    """What the first process wrote; None if there is nothing."""
    try:
        found = json.loads((folder / STATUS).read_text(encoding='utf-8'))
        return found if found['code'] in list(Exit) and {'rank', 'message'} <= set(found) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def clear_status(folder: Path) -> None:
    """Remove what an earlier run left."""
    with contextlib.suppress(OSError):
        (folder / STATUS).unlink(missing_ok=True)


def exit_code_and_message(folder: Path) -> tuple[int, str]:
    """Exit code and sentence of a run; 8 where no process could leave a word."""
    found = read_status(folder)
    if found is None:
        return Exit.DISTRIBUTED, (
            f'no process left a word in {folder}: all were killed, or none began. Look at the log '
            'of the launcher; run again with --resume auto.'
        )
    return found['code'], found['message']
