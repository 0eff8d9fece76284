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
from mmattn.files import sync_file, sync_folder, write_text_atomic
from mmattn.log import warn

from .find import POINTER, last_good
from .manifest import facts_of, manifest_of, read_manifest
from .plain_values import plain, tensors
from .read import read_checkpoint

_TRIES, _WAIT = 4, 0.5  # of a failing write; seconds before the second try, then twice as long
_SPARE = 1.2  # free space over the size of what is written
_LARGE = 1 << 20  # bytes from which a thread that hashes pays
_NO_USE_TO_RETRY = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EFBIG}


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
        sync_file(file.fileno())
        size = os.fstat(file.fileno()).st_size
    if size != hashing.size:
        raise OSError(errno.EIO, f'{hashing.size} bytes written, {size} there', str(part))
    _check_readable(part, path)
    new = dict(facts, file=path.name, size=size, sha256=hashing.digest.hexdigest())
    new['saved'] = time.time_ns()
    old = read_manifest(manifest_of(path)) if path.exists() else None
    if old:  # the same step again: until the file has changed, either content is right
        write_text_atomic(
            manifest_of(path), json.dumps(dict(old, next=[new['size'], new['sha256']]))
        )
    os.replace(part, path)
    sync_folder(path.parent)
    write_text_atomic(manifest_of(path), json.dumps(new, indent=1))


def _check_readable(part: Path, path: Path) -> None:
    """Have the reader take the structure of what was written: all but the values of tensors."""
    try:
        read_checkpoint(part, structure=True)
    except CheckpointError as error:
        said = str(error).replace(part.name, path.name)
        raise WriteError(f'{path.name} is not saved, as it could not be read: {said}') from error


def point_to(path: Path, folder: Path | None = None) -> None:
    """Have the pointer of its folder name a checkpoint, and that of another folder, too."""
    write_text_atomic(path.parent / POINTER, path.name)
    if folder is not None and folder.resolve() != path.parent.resolve():
        write_text_atomic(folder / POINTER, str(path.resolve()))


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
        sync_folder(link.parent)
        if copied:
            write_text_atomic(manifest_of(link), json.dumps(copied, indent=1))
    except OSError as error:
        warn(f'best.pth does not name {path.name}: {_reason(error)}. Use {path.name} itself.')
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _same_content(one: Path, other: Path) -> bool:
    facts = [read_manifest(manifest_of(path)) for path in (one, other)]
    return one.is_file() and all(facts) and facts[0]['sha256'] == facts[1]['sha256']


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


def _remove_parts(path: Path) -> None:
    for name in path.name, manifest_of(path).name:
        with contextlib.suppress(OSError):
            path.with_name(f'{name}.part').unlink(missing_ok=True)


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
