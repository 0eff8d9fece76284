"""The checkpoint to resume from: the last one saved that is verified."""

import contextlib
from pathlib import Path

from mmattn.errors import CheckpointError
from mmattn.log import warn

from .manifest import manifest_of, manifests, verify
from .read import read_checkpoint

POINTER = 'last_checkpoint'


def last_good(folder: str | Path) -> Path | None:
    """The checkpoint saved last that is what its manifest says; in silence."""
    for path, _ in manifests(folder, resumable=True):
        with contextlib.suppress(CheckpointError, OSError):
            if verify(path):
                return path
    return None


def find_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint to go on from: the last one saved that is verified; says what it skips.

    A folder without any manifest was written before there were manifests: of its files the one that
    the pointer names counts, or else the one with the highest number. Where checkpoints lie in a
    folder of their own (`CheckpointHook.out_dir`), the pointer leads there.

    Returns:
        None if there is none at all.

    Raises:
        CheckpointError: there are some, and none can be used.
    """
    folder = _home(Path(folder))
    known = manifests(folder, resumable=True)
    pointed, chosen, refused = _pointed(folder), None, ''
    for path, _ in known:
        try:
            if not path.exists():
                warn(f'skipping {path.stem}: the file is gone')
                continue
            verify(path)
            read_checkpoint(path)
        except CheckpointError as error:
            warn(f'skipping {path.stem}: {error}')
            refused = refused or str(error)
            continue
        chosen = path
        break
    bare = _bare(folder)
    if known:
        for path in bare:
            warn(f'skipping {path.stem}: incomplete (no manifest)')
            refused = refused or f'{path.name} is incomplete (no manifest).'
    if chosen is None and bare and not known:
        ordered = [p for p in bare if p == pointed] + [p for p in bare if p != pointed]
        for path in ordered:
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                warn(f'skipping {path.stem}: {error}')
                refused = refused or str(error)
                continue
            warn(f'{path.name} has no manifest, as before there were any: it cannot be verified')
            chosen = path
            break
    if chosen is None and refused:
        raise CheckpointError(
            f'nothing to resume in {folder}: there are checkpoints, and none can be used. '
            f'{refused} Start anew in another folder with --work-dir.'
        )
    if chosen and pointed and not pointed.exists():
        warn(f'{POINTER} names {pointed.stem} which does not exist; using {chosen.stem}')
    return chosen


def check_empty_of_weights(folder: Path) -> None:
    """Refuse to begin over weights that cannot be resumed; a best one alone was of a killed run.

    Raises:
        CheckpointError: names them.
    """
    for path, facts in manifests(_home(Path(folder))):
        alone = not facts.get('resumable', True) and not path.name.startswith('best')
        if alone and path.exists():
            raise CheckpointError(
                f'nothing to resume in {folder}: {path.name} holds weights alone, not the state of '
                f'the optimizer. Start from them with --init-from {path}, or anew in another '
                'folder with --work-dir.'
            )


def _home(folder: Path) -> Path:
    """Where the checkpoints of a run lie: its folder, or else what its pointer leads to."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        other = Path((folder / POINTER).read_text(encoding='utf-8').strip()).parent
        if other.is_absolute() and manifests(other) and not manifests(folder):
            return other
    return folder


def _bare(folder: Path) -> list[Path]:
    """Checkpoints of a training without a manifest, the highest number first."""
    numbered = [
        p
        for p in folder.glob('*_*.pth')
        if p.stem.split('_')[0] in ('iter', 'epoch') and p.stem.split('_')[-1].isdigit()
    ]
    numbered.sort(key=lambda p: int(p.stem.split('_')[-1]), reverse=True)
    return [p for p in numbered if not manifest_of(p).exists()]


def _pointed(folder: Path) -> Path | None:
    """What the pointer names, wherever the folder was when it was written."""
    try:
        name = Path((folder / POINTER).read_text(encoding='utf-8').strip()).name
    except (OSError, UnicodeDecodeError):
        return None
    return folder / name if name else None
