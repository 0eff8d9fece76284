"""The JSON file that scores go to: checked before anything is counted, written at the end."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from mmattn.errors import UsageError, WriteError


def check_target(path: str | Path | None, sources: Iterable[str | Path]) -> None:
    """Refuse a file that cannot be written, is a source, or lies in a folder of sources.

    Raises:
        UsageError: it is one of `sources`, or in one.
        WriteError: its folder cannot be made or written to.
    """
    if path is None:
        return
    place = Path(os.path.realpath(path))
    for source in map(Path, map(os.path.realpath, sources)):
        if place == source or (source.is_dir() and source in place.parents):
            how = 'is' if place == source else 'is in'
            raise UsageError(
                f'--json {path} {how} {source}, which is read. Choose another file with --json.'
            )
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        there = place.exists()
        with open(place, 'a') if there else NamedTemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        raise _cannot(path, error) from error


def write_scores(path: str | Path | None, scores: dict[str, Any]) -> None:
    """Write scores, if a path is given.

    Raises:
        WriteError: they cannot be written.
    """
    if path is None:
        return
    try:
        Path(path).write_text(json.dumps(scores, indent=1) + '\n')
    except OSError as error:
        raise _cannot(path, error) from error


def _cannot(path: str | Path, error: OSError) -> WriteError:
    reason = (error.strerror or str(error)).lower()
    return WriteError(f'cannot write to {path}: {reason}. Choose another file with --json.')
