"""Verdicts of earlier checks of data, so that unchanged files are not checked again."""

import hashlib
import json
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmattn' / 'checks'


def fingerprint(paths: Iterable[tuple[str, ...]], settings: list) -> str:
    """32 hexadecimal digits of a set of files and of the settings of a check.

    Args:
        paths: files; their names, sizes and times count.
        settings: everything else that the verdict depends on, by `repr`.

    Raises:
        OSError: a file is missing.
    """
    digest = hashlib.sha256(repr(settings).encode())
    for path in chain.from_iterable(paths):
        stat = os.stat(path)
        digest.update(f'{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}\n'.encode())
    return digest.hexdigest()[:32]


def load_verdict(key: str) -> Any:
    """The verdict that was saved under a key; None if there is none."""
    try:
        return json.loads((CACHE / f'{key}.json').read_text())
    except (OSError, ValueError):
        return None


def save_verdict(key: str, verdict: Any) -> None:
    """Save a verdict under a key; does nothing where the cache cannot be written."""
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        (CACHE / f'{key}.json').write_text(json.dumps(verdict))
    except OSError:
        pass  # the next run checks again
