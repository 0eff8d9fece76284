"""Checkpoints that survive: written beside, verified, and only then is the old one given up.

A checkpoint is a `.pth` and its manifest, `<name>.pth.json`: size and sha256 of the file and the
facts of the run. One file of weights and state, as `test.py`, `publish.py` and mmengine's own tools
know it, keeps what two files with a manifest would promise: it holds tensors and plain values only
and is read with `weights_only=True`, so no code is executed, and a file without its manifest or
that differs from it is never resumed from. The order of the steps is what a kill at any moment
cannot break:

1. `<name>.part` is written, hashed on the way, and fsynced; what the reader would refuse of it is
   not kept;
2. where the name exists, its manifest is told to accept either content;
3. the part takes the name; the folder is fsynced;
4. the manifest is written in the same way, last;
5. the pointer `last_checkpoint` gets the name, relative to its folder;
6. the caller may now remove older ones.

The hash is of what was in memory. Reading the file again at once would show what the system's cache
holds, not the disk: it is verified when it is read, and resuming falls back to the one before.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmattn.errors import CheckpointError, NonFiniteError, WriteError

from .plain_values import plain

POINTER = 'last_checkpoint'
_TRIES, _WAIT = 4, 0.5  # of a failing write; seconds before the second try, then twice as long
_SPARE = 1.2  # free space over the size of what is written
_LARGE = 1 << 20  # bytes from which a thread that hashes pays
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_USE_TO_RETRY = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EFBIG}
_verified: set[tuple] = set()  # path, size and times of files that were hashed in this process


def manifest_of(path: Path) -> Path:
    return path.with_name(f'{path.name}.json')


def write_checkpoint(path: str | Path, content: dict, facts: dict) -> None:
    """Save `content` under `path` so that at any moment the old or the new file is whole.

    Args:
        path: of the `.pth`; its folder exists.
        content: tensors and plain values, or what has a plain form, see `plain`.
        facts: plain values for the manifest; `iter` among them.

    Raises:
        NotPlain: something in it has no plain form; nothing is written.
        NonFiniteError: a tensor is not finite; nothing is written.
        WriteError: it cannot be written, also when tried again, or not be read; nothing is left.
    """
    path = Path(path)
    content = plain(content)
    _check_finite(content, path)
    wait, last = _WAIT, None
    for attempt in range(_TRIES):
        try:
            _check_space(path, content)
            _write(path, content, facts)
            return
        except (OSError, RuntimeError) as error:  # torch's writer turns the first into the second
            last = _cause(error)
            if last is None:
                raise
            if last.errno in _NO_USE_TO_RETRY or attempt == _TRIES - 1:
                break
            print_log(
                f'cannot write {path.name}: {_reason(last)}; trying again in {wait:g} s',
                logger='current',
                level=logging.WARNING,
            )
            time.sleep(wait)
            wait *= 2
        finally:
            _remove_parts(path)
    good = last_good(path.parent)
    raise WriteError(
        f'cannot write checkpoint {path}: {_reason(last)}; last good: '
        f'{good.name if good else "none"}. Free space or choose another folder with --work-dir, '
        'then run again with --resume.'
    ) from last


def _write(path: Path, content: dict, facts: dict) -> None:
    part = path.with_name(f'{path.name}.part')
    with open(part, 'wb') as file, _Hashing(file) as hashing:
        with _no_checksums():
            torch.save(content, hashing)
        file.flush()
        _fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    if size != hashing.size:
        raise OSError(errno.EIO, f'{hashing.size} bytes written, {size} there', str(part))
    _check_readable(part, path)
    new = dict(facts, file=path.name, size=size, sha256=hashing.digest.hexdigest())
    new['saved'] = time.time_ns()
    old = _read_manifest(manifest_of(path)) if path.exists() else None
    if old:  # the same step again: until the file has changed, either content is right
        _replace(manifest_of(path), json.dumps(dict(old, next=[new['size'], new['sha256']])))
    os.replace(part, path)
    _sync(path.parent)
    _replace(manifest_of(path), json.dumps(new, indent=1))


def _check_readable(part: Path, path: Path) -> None:
    """Have the reader take the structure of what was written: all but the values of tensors."""
    from .read import read_checkpoint

    try:
        read_checkpoint(part, structure=True)
    except CheckpointError as error:
        said = str(error).replace(part.name, path.name)
        raise WriteError(f'{path.name} is not saved, as it could not be read: {said}') from error


def point_to(path: Path, folder: Path | None = None) -> None:
    """Have the pointer of its folder name a checkpoint, and that of another folder, too."""
    _replace(path.parent / POINTER, path.name)
    if folder is not None and folder.resolve() != path.parent.resolve():
        _replace(folder / POINTER, str(path.resolve()))


def name_best(path: Path) -> None:
    """Have `best.pth` beside a checkpoint be that one: a link, or a copy where there are none.

    What goes wrong is said and ends no training: the file itself is there.
    """
    link, part = path.with_name('best.pth'), path.with_name('best.pth.part')
    try:
        if not link.is_symlink() and _same_content(link, path):
            return
        part.unlink(missing_ok=True)
        try:
            os.symlink(path.name, part)
            copied = None
        except (OSError, NotImplementedError):  # Google Drive in Colab, exFAT, SMB
            shutil.copyfile(path, part)
            copied = dict(facts_of(path), file=link.name, copy_of=path.name, resumable=False)
        manifest_of(link).unlink(missing_ok=True)
        os.replace(part, link)
        _sync(link.parent)
        if copied:
            _replace(manifest_of(link), json.dumps(copied, indent=1))
    except OSError as error:
        _warn(f'best.pth does not name {path.name}: {_reason(error)}. Use {path.name} itself.')
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _same_content(one: Path, other: Path) -> bool:
    facts = [_read_manifest(manifest_of(path)) for path in (one, other)]
    return one.is_file() and all(facts) and facts[0]['sha256'] == facts[1]['sha256']


def note(path: Path, **facts) -> None:
    """Add facts to a manifest."""
    found = _read_manifest(manifest_of(path))
    if found:
        _replace(manifest_of(path), json.dumps({**found, **facts}, indent=1))


def facts_of(path: str | Path) -> dict:
    """What the manifest of a checkpoint says; empty if it has none."""
    return _read_manifest(manifest_of(Path(path).resolve())) or {}


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
    found = _read_manifest(manifest_of(path))
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
        facts = _read_manifest(file)
        if facts and (facts.get('resumable', True) or not resumable):
            found.append((file.with_suffix(''), facts))
    return sorted(found, key=lambda pair: pair[1]['saved'], reverse=True)


def last_good(folder: str | Path) -> Path | None:
    """The checkpoint saved last that is what its manifest says; in silence."""
    for path, _ in manifests(folder, resumable=True):
        with contextlib.suppress(CheckpointError, OSError):
            if verify(path):
                return path
    return None


def find(folder: str | Path) -> Path | None:
    """The checkpoint to go on from: the last one saved that is verified; says what it skips.

    A folder without any manifest was written before there were manifests: of its files the one that
    the pointer names counts, or else the one with the highest number. Where checkpoints lie in a
    folder of their own (`CheckpointHook.out_dir`), the pointer leads there.

    Returns:
        None if there is none at all.

    Raises:
        CheckpointError: there are some, and none can be used.
    """
    from .read import read_checkpoint

    folder = _home(Path(folder))
    known = manifests(folder, resumable=True)
    pointed, chosen, refused = _pointed(folder), None, ''
    for path, _ in known:
        try:
            if not path.exists():
                _warn(f'skipping {path.stem}: the file is gone')
                continue
            verify(path)
            read_checkpoint(path)
        except CheckpointError as error:
            _warn(f'skipping {path.stem}: {error}')
            refused = refused or str(error)
            continue
        chosen = path
        break
    bare = _bare(folder)
    if known:
        for path in bare:
            _warn(f'skipping {path.stem}: incomplete (no manifest)')
            refused = refused or f'{path.name} is incomplete (no manifest).'
    if chosen is None and bare and not known:
        ordered = [p for p in bare if p == pointed] + [p for p in bare if p != pointed]
        for path in ordered:
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                _warn(f'skipping {path.stem}: {error}')
                refused = refused or str(error)
                continue
            _warn(f'{path.name} has no manifest, as before there were any: it cannot be verified')
            chosen = path
            break
    if chosen is None and refused:
        raise CheckpointError(
            f'nothing to resume in {folder}: there are checkpoints, and none can be used. '
            f'{refused} Start anew in another folder with --work-dir.'
        )
    if chosen and pointed and not pointed.exists():
        _warn(f'{POINTER} names {pointed.stem} which does not exist; using {chosen.stem}')
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


# ---- the steps ---------------------------------------------------------------------------------
class _Hashing:
    """A file that hashes what is written; a large piece in a thread, while it is written."""

    def __init__(self, file) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0
        self.thread = ThreadPoolExecutor(1)

    def write(self, data) -> int:
        self.size += len(data)
        if len(data) < _LARGE:
            self.digest.update(data)
            return self.file.write(data)
        hashed = self.thread.submit(self.digest.update, data)
        try:
            return self.file.write(data)
        finally:
            hashed.result()  # the memory is the caller's again

    def flush(self) -> None:
        self.file.flush()

    def __enter__(self) -> '_Hashing':
        return self

    def __exit__(self, *_) -> None:
        self.thread.shutdown()


@contextlib.contextmanager
def _no_checksums() -> Iterator[None]:
    """Without those of the archive, which take time and which torch never reads; sha256 is kept."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def sha256(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 18))
    with open(path, 'rb', buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def _read_manifest(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        return found if {'size', 'sha256', 'saved', 'iter'} <= set(found) else None
    except (OSError, ValueError, TypeError):
        return None


def _replace(path: Path, text: str) -> None:
    """Write a small file so that at any moment the old or the new one is whole."""
    part = path.with_name(f'{path.name}.part')
    with open(part, 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        _fsync(file.fileno())
    os.replace(part, path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in (*_CANNOT_SYNC, errno.EACCES, errno.EISDIR):
            return  # a folder that cannot be opened, as on Windows
        raise
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync(descriptor: int) -> None:
    """Have the system write to the disk, where the file system knows how: FUSE and SMB may not."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def _remove_parts(path: Path) -> None:
    for name in path.name, manifest_of(path).name:
        with contextlib.suppress(OSError):
            path.with_name(f'{name}.part').unlink(missing_ok=True)


def tensors(value, name: str = '') -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a structure with where it stands."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f'{name}.{key}' if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from tensors(item, f'{name}.{index}')


def _check_finite(content: dict, path: Path) -> None:
    for name, value in tensors(content):
        if value.is_floating_point() and not value.sum(dtype=_wide(value)).isfinite():
            bad = value.numel() - int(value.isfinite().sum())
            if bad:  # else only the sum was too large
                raise NonFiniteError(
                    f'{path.name} is not saved: tensor {name.removeprefix("state_dict.")} holds '
                    f'{bad} non-finite values. Resume from the checkpoint before with a lower '
                    'learning rate.'
                )


def _wide(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


def _check_space(path: Path, content: dict) -> None:
    need = _SPARE * sum(value.nbytes for _, value in tensors(content))
    free = shutil.disk_usage(path.parent).free
    if free < need:
        raise OSError(
            errno.ENOSPC, f'need {_mb(need)}, {_mb(free)} free in {path.parent}', str(path)
        )


def _mb(size: float) -> str:
    return f'{size / 1e6:.0f} MB'


def _cause(error: BaseException | None) -> OSError | None:
    """The operating system's error in what torch's writer raised."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _reason(error: OSError) -> str:
    text = (error.strerror or str(error)).strip()
    return text if text.startswith('need ') else text.lower()


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
