"""What the scorers of saved results share: messages on stderr, and the JSON file of the scores."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from mmattn.errors import UsageError, cannot_write


def print_message(text: str) -> None:
    """Print a message to stderr; stdout is for scores."""
    print(text, file=sys.stderr, flush=True)


def check_json_target(path: str | Path | None, sources: Iterable[str | Path]) -> None:
    """Refuse a JSON file that cannot be written, or that would replace a source.

    Args:
        path: the file; None checks nothing.
        sources: files and folders that are read.

    Raises:
        UsageError: it is one of `sources`, or in a folder of them.
        WriteError: its folder cannot be made or written to.
    """
    if path is None:
        return
    target = Path(os.path.realpath(path))
    for source in map(Path, map(os.path.realpath, sources)):
        if target == source or (source.is_dir() and source in target.parents):
            how = 'is' if target == source else 'is in'
            raise UsageError(
                f'--json {path} {how} {source}, which is read. Choose another file with --json.'
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        exists = target.exists()
        with open(target, 'a') if exists else NamedTemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise cannot_write(path, error, 'Choose another file with --json.') from error


def write_scores(path: str | Path | None, scores: dict[str, Any]) -> None:
    """Write scores to a JSON file; None writes nothing.

    Raises:
        WriteError: they cannot be written.
    """
    if path is None:
        return
    try:
        Path(path).write_text(json.dumps(scores, indent=1) + '\n')
    except OSError as error:
        raise cannot_write(path, error, 'Choose another file with --json.') from error
