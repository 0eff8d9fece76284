"""Finding the checkpoint to resume from: the last one saved that is verified."""

import contextlib
from pathlib import Path

from mmattn.errors import CheckpointError
from mmattn.log import warn

from .manifest import list_checkpoints, manifest_of, verify
from .read import Checkpoint, open_checkpoint

POINTER = 'last_checkpoint'


def last_good(folder: str | Path) -> Path | None:
    """The last checkpoint saved that agrees with its manifest; logs nothing."""
    for path, _ in list_checkpoints(folder, resumable=True):
        with contextlib.suppress(CheckpointError, OSError):
            if verify(path):
                return path
    return None


def find_checkpoint(folder: str | Path) -> Path | None:
    """The path of `open_latest`."""
    checkpoint = open_latest(folder)
    return checkpoint and checkpoint.path


def open_latest(folder: str | Path) -> Checkpoint | None:
    """Open the checkpoint to resume from: the last one saved that is verified; log skipped ones.

    A folder without any manifest was written before there were manifests: of its files the one that
    the pointer names counts, or else the one with the highest number. Where checkpoints are in a
    folder of their own (`CheckpointHook.out_dir`), the pointer leads there.

    Returns:
        None if there is none at all.

    Raises:
        CheckpointError: there are some, and none can be used.
    """
    folder = _checkpoint_folder(Path(folder))
    paths = [path for path, _ in list_checkpoints(folder, resumable=True)]
    bare = _without_manifest(folder)
    pointed = _pointed(folder)
    if paths:
        checkpoint, problem = _first_readable(paths)
        for path in bare:
            warn(f'skipping {path.stem}: incomplete (no manifest)')
            problem = problem or f'{path.name} is incomplete (no manifest).'
    else:
        ordered = [p for p in bare if p == pointed] + [p for p in bare if p != pointed]
        checkpoint, problem = _first_readable(ordered)
        if checkpoint:
            warn(
                f'{checkpoint.path.name} has no manifest, as before there were any: it cannot be '
                'verified'
            )
    if checkpoint is None and problem:
        raise CheckpointError(
            f'nothing to resume in {folder}: there are checkpoints, and none can be used. '
            f'{problem} Start anew in another folder with --work-dir.'
        )
    if checkpoint and pointed and not pointed.exists():
        warn(f'{POINTER} names {pointed.stem} which does not exist; using {checkpoint.path.stem}')
    return checkpoint


def _first_readable(paths: list[Path]) -> tuple[Checkpoint | None, str]:
    """Open the first checkpoint that can be read; and the first problem met, '' if none."""
    problem = ''
    for path in paths:
        if not path.exists():
            warn(f'skipping {path.stem}: the file is gone')
            continue
        try:
            return open_checkpoint(path), problem
        except CheckpointError as error:
            warn(f'skipping {path.stem}: {error}')
            problem = problem or str(error)
    return None, problem


def check_no_weights(folder: Path) -> None:
    """Refuse to start a training over weights that cannot be resumed.

    A best checkpoint alone is accepted: its run was killed.

    Raises:
        CheckpointError: names them.
    """
    for path, facts in list_checkpoints(_checkpoint_folder(Path(folder))):
        weights_only = not facts.get('resumable', True) and not path.name.startswith('best')
        if weights_only and path.exists():
            raise CheckpointError(
                f'nothing to resume in {folder}: {path.name} holds weights alone, not the state of '
                f'the optimizer. Start from them with --init-from {path}, or anew in another '
                'folder with --work-dir.'
            )


def _checkpoint_folder(folder: Path) -> Path:
    """The folder of a run's checkpoints: its work dir, or else where its pointer leads."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        other = Path((folder / POINTER).read_text(encoding='utf-8').strip()).parent
        if other.is_absolute() and list_checkpoints(other) and not list_checkpoints(folder):
            return other
    return folder


def _without_manifest(folder: Path) -> list[Path]:
    """Checkpoints of a training that have no manifest; the highest number first."""
    numbered = [
        p
        for p in folder.glob('*_*.pth')
        if p.stem.split('_')[0] in ('iter', 'epoch') and p.stem.split('_')[-1].isdigit()
    ]
    numbered.sort(key=lambda p: int(p.stem.split('_')[-1]), reverse=True)
    return [p for p in numbered if not manifest_of(p).exists()]


def _pointed(folder: Path) -> Path | None:
    """The checkpoint that the pointer names, in this folder, which may have been moved."""
    try:
        name = Path((folder / POINTER).read_text(encoding='utf-8').strip()).name
    except (OSError, UnicodeDecodeError):
        return None
    return folder / name if name else None
