"""Manifests of checkpoints: size, sha256 and step, in a JSON file next to each."""

import json
from pathlib import Path

from mmattn.errors import CheckpointError
from mmattn.files import sha256, write_text_atomic

_verified: set[tuple] = set()  # path, size and times of files that were hashed in this process


def manifest_of(path: Path) -> Path:
    return path.with_name(f'{path.name}.json')


def note(path: Path, **facts) -> None:
    """Add facts to a manifest."""
    found = read_manifest(manifest_of(path))
    if found:
        write_text_atomic(manifest_of(path), json.dumps({**found, **facts}, indent=1))


def facts_of(path: str | Path) -> dict:
    """What the manifest of a checkpoint says; empty if it has none."""
    return read_manifest(manifest_of(Path(path).resolve())) or {}


def remove(path: str | Path) -> None:
    """Remove a checkpoint: the manifest first, so that what is left of it does not count."""
    for file in manifest_of(Path(path)), Path(path):
        file.unlink(missing_ok=True)


def tidy(folder: str | Path) -> None:
    """Remove what a killed run left: parts, and manifests of files that are gone."""
    for part in Path(folder).glob('*.part'):
        part.unlink(missing_ok=True)
    for manifest in Path(folder).glob('*.pth.json'):
        if not manifest.with_suffix('').exists():
            manifest.unlink(missing_ok=True)


def verify(path: str | Path) -> bool:
    """Compare a checkpoint, or what a link leads to, with its manifest; False if there is none.

    A file that this process has verified, and that has not been written to since, is not read.

    Raises:
        CheckpointError: it differs.
    """
    path = Path(path).resolve()
    found = read_manifest(manifest_of(path))
    if found is None:
        return False
    accepted = [[found['size'], found['sha256']], *([found['next']] if 'next' in found else [])]
    state = _state(path)
    if state in _verified:
        return True
    size = state[1]
    if size not in [s for s, _ in accepted]:
        _damaged(path, f'size {size}, manifest says {accepted[0][0]}')
    if [size, sha256(path)] not in accepted:
        _damaged(path, 'sha256 differs from the manifest')
    _verified.add(state)
    return True


def _state(path: Path) -> tuple:
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns, stat.st_ino


def _damaged(path: Path, why: str) -> None:
    older = (p for p, facts in manifests(path.parent) if p != path and p.exists())
    good = next((p for p in older if p.stat().st_size == facts_of(p)['size']), None)
    hint = f' Previous good checkpoint: {good.name}.' if good else ''
    raise CheckpointError(f'checkpoint {path} is damaged: {why}.{hint}')


def manifests(folder: str | Path, resumable: bool = False) -> list[tuple[Path, dict]]:
    """Checkpoints with a manifest and what that says, the one saved last first."""
    found = []
    for file in Path(folder).glob('*.pth.json'):
        facts = read_manifest(file)
        if facts and (facts.get('resumable', True) or not resumable):
            found.append((file.with_suffix(''), facts))
    return sorted(found, key=lambda pair: pair[1]['saved'], reverse=True)


def read_manifest(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        return found if {'size', 'sha256', 'saved', 'iter'} <= set(found) else None
    except (OSError, ValueError, TypeError):
        return None
