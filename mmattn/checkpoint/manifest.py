"""Manifests: size, sha256 and step of a checkpoint, in a JSON file next to it."""

import json
from pathlib import Path
from typing import NoReturn

from mmattn.errors import CheckpointError
from mmattn.files import sha256, write_text_atomic

_hashes: dict[tuple, str] = {}  # path, size and times of a file -> its sha256, for this process


def manifest_of(path: Path) -> Path:
    """The path of a checkpoint's manifest."""
    return path.with_name(f'{path.name}.json')


def update_manifest(path: Path, **facts) -> None:
    """Add facts to the manifest of a checkpoint, if it has one."""
    manifest = read_manifest(manifest_of(path))
    if manifest:
        write_text_atomic(manifest_of(path), json.dumps({**manifest, **facts}, indent=1))


def facts_of(path: str | Path) -> dict:
    """The manifest of a checkpoint; empty if it has none."""
    return read_manifest(manifest_of(Path(path).resolve())) or {}


def remove_checkpoint(path: str | Path) -> None:
    """Remove a checkpoint; its manifest first, as a file without a manifest is never resumed."""
    for file in manifest_of(Path(path)), Path(path):
        file.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> None:
    """Remove what a killed run left: partly written files, and manifests without a checkpoint."""
    for part in Path(folder).glob('*.part'):
        part.unlink(missing_ok=True)
    for manifest in Path(folder).glob('*.pth.json'):
        if not manifest.with_suffix('').exists():
            manifest.unlink(missing_ok=True)


def verify(path: str | Path) -> bool:
    """Compare a checkpoint, or the target of a link, with its manifest; False if it has none.

    A file is hashed once in a process, unless it changes.

    Raises:
        CheckpointError: size or sha256 differs.
    """
    path = Path(path).resolve()
    manifest = read_manifest(manifest_of(path))
    if manifest is None:
        return False
    accepted = [[manifest['size'], manifest['sha256']]]
    if 'next' in manifest:
        accepted.append(manifest['next'])
    size = path.stat().st_size
    if size not in [s for s, _ in accepted]:
        _raise_damaged(path, f'size {size}, manifest says {accepted[0][0]}')
    if [size, file_sha256(path)] not in accepted:
        _raise_damaged(path, 'sha256 differs from the manifest')
    return True


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file, which is read once in a process, unless it changes."""
    path = Path(path).resolve()
    state = _state(path)
    if state not in _hashes:
        _hashes[state] = sha256(path)
    return _hashes[state]


def _state(path: Path) -> tuple:
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns, stat.st_ino


def _raise_damaged(path: Path, why: str) -> NoReturn:
    others = (p for p, _ in list_checkpoints(path.parent) if p != path and p.exists())
    good = next((p for p in others if p.stat().st_size == facts_of(p)['size']), None)
    hint = f' Previous good checkpoint: {good.name}.' if good else ''
    raise CheckpointError(f'checkpoint {path} is damaged: {why}.{hint}')


def list_checkpoints(folder: str | Path, resumable: bool = False) -> list[tuple[Path, dict]]:
    """Checkpoints with a manifest, and that; the one saved last first.

    Args:
        folder: folder of the checkpoints.
        resumable: leave out those that hold weights alone.
    """
    checkpoints = []
    for file in Path(folder).glob('*.pth.json'):
        facts = read_manifest(file)
        if facts and (facts.get('resumable', True) or not resumable):
            checkpoints.append((file.with_suffix(''), facts))
    return sorted(checkpoints, key=lambda pair: pair[1]['saved'], reverse=True)


def read_manifest(path: Path) -> dict | None:
    """The content of a manifest; None if there is none, or it is incomplete."""
    try:
        manifest = json.loads(path.read_text(encoding='utf-8'))
        return manifest if {'size', 'sha256', 'saved', 'iter'} <= set(manifest) else None
    except (OSError, ValueError, TypeError):
        return None
