"""Writing checkpoints atomically: a kill at any moment leaves the previous or the new one whole.

A checkpoint is a `.pth` file and its manifest, `<name>.pth.json`: size and sha256 of the file and
facts of the run. The `.pth` holds weights and training state, as `test.py`, `publish.py` and
mmengine's own tools expect; tensors and plain values only, so that it is read with
`weights_only=True` and no code is executed. A file without a manifest, or one that differs from it,
is never resumed. A checkpoint is written to a temporary file and verified before the previous one
is removed:

1. `<name>.part` is written, hashed meanwhile, and fsynced; it is deleted if the reader would refuse
   it;
2. where the name exists, its manifest is made to accept either content;
3. the part is renamed; the folder is fsynced;
4. the manifest is written in the same way, last;
5. the pointer `last_checkpoint` gets the name, relative to its folder;
6. the caller may now remove older checkpoints.

The hash is computed from memory. Reading the file again at once would show the system's cache, not
the disk: it is verified when it is read, and resuming falls back to the checkpoint before.
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

from mmattn import torch_compat
from mmattn.errors import CheckpointError, NonFiniteError, WriteError
from mmattn.files import sync_file, sync_folder, write_text_atomic
from mmattn.log import warn

from .find import POINTER, last_good
from .manifest import facts_of, manifest_of, read_manifest
from .plain_values import iter_tensors, to_plain
from .read import read_checkpoint

_TRIES, _WAIT = 4, 0.5  # of a failing write; seconds before the second try, doubled each time
_SPACE_FACTOR = 1.2  # free space required, over the bytes of the tensors
_THREADED = 1 << 20  # bytes of a block from which hashing in a thread pays
_NOT_RETRIED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EFBIG}


def write_checkpoint(path: str | Path, content: dict, facts: dict) -> None:
    """Save `content` under `path` so that at any moment the old or the new file is whole.

    Args:
        path: path of the `.pth` file, in an existing folder.
        content: tensors and plain values, or values that `to_plain` converts to these.
        facts: plain values for the manifest; `iter` among them.

    Raises:
        NotPlain: a value has no plain form; nothing is written.
        NonFiniteError: a tensor is not finite; nothing is written.
        WriteError: the file cannot be written, after several tries, or not be read; nothing is
            left of it.
    """
    path = Path(path)
    content = to_plain(content)
    _check_finite(content, path)
    wait, last = _WAIT, None
    for attempt in range(_TRIES):
        try:
            _check_space(path, content)
            _write(path, content, facts)
            return
        except (OSError, RuntimeError) as error:  # torch's writer turns the first into the second
            last = _os_error(error)
            if last is None:
                raise
            if last.errno in _NOT_RETRIED or attempt == _TRIES - 1:
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
    with open(part, 'wb') as file, _HashingFile(file) as hashing:
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
    """Read everything but the values of tensors of a file that was just written."""
    try:
        read_checkpoint(part, structure=True)
    except CheckpointError as error:
        reason = str(error).replace(part.name, path.name)
        raise WriteError(f'{path.name} is not saved, as it could not be read: {reason}') from error


def write_pointer(path: Path, folder: Path | None = None) -> None:
    """Make the pointer file of a checkpoint's folder name it, and that of another `folder`, too."""
    write_text_atomic(path.parent / POINTER, path.name)
    if folder is not None and folder.resolve() != path.parent.resolve():
        write_text_atomic(folder / POINTER, str(path.resolve()))


def link_best(path: Path) -> None:
    """Make `best.pth` a link to a checkpoint next to it, or a copy where links are impossible.

    A failure is a warning and does not end the training: the checkpoint itself exists.
    """
    link, part = path.with_name('best.pth'), path.with_name('best.pth.part')
    try:
        if not link.is_symlink() and _same_content(link, path):
            return
        part.unlink(missing_ok=True)
        try:
            os.symlink(path.name, part)
            copy_facts = None
        except (OSError, NotImplementedError):  # Google Drive in Colab, exFAT, SMB
            shutil.copyfile(path, part)
            copy_facts = dict(facts_of(path), file=link.name, copy_of=path.name, resumable=False)
        manifest_of(link).unlink(missing_ok=True)
        os.replace(part, link)
        sync_folder(link.parent)
        if copy_facts:
            write_text_atomic(manifest_of(link), json.dumps(copy_facts, indent=1))
    except OSError as error:
        warn(f'best.pth does not name {path.name}: {_reason(error)}. Use {path.name} itself.')
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _same_content(one: Path, other: Path) -> bool:
    facts = [read_manifest(manifest_of(path)) for path in (one, other)]
    return one.is_file() and all(facts) and facts[0]['sha256'] == facts[1]['sha256']


# ---- the steps ---------------------------------------------------------------------------------
class _HashingFile:
    """A file that hashes the bytes written to it; large blocks in a thread, during the write."""

    def __init__(self, file) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0
        self.thread = ThreadPoolExecutor(1)

    def write(self, data) -> int:
        self.size += len(data)
        if len(data) < _THREADED:
            self.digest.update(data)
            return self.file.write(data)
        hashed = self.thread.submit(self.digest.update, data)
        try:
            return self.file.write(data)
        finally:
            hashed.result()  # the caller may change `data` after this call

    def flush(self) -> None:
        self.file.flush()

    def __enter__(self) -> '_HashingFile':
        return self

    def __exit__(self, *_) -> None:
        self.thread.shutdown()


@contextlib.contextmanager
def _no_checksums() -> Iterator[None]:
    """Disable the archive's checksums: slow, never read by torch, and sha256 replaces them."""
    before = torch_compat.get_crc32_options()
    torch_compat.set_crc32_options(False)
    try:
        yield
    finally:
        torch_compat.set_crc32_options(before)


def _remove_parts(path: Path) -> None:
    for name in path.name, manifest_of(path).name:
        with contextlib.suppress(OSError):
            path.with_name(f'{name}.part').unlink(missing_ok=True)


def _check_finite(content: dict, path: Path) -> None:
    for name, value in iter_tensors(content):
        if value.is_floating_point() and not value.sum(dtype=_sum_dtype(value)).isfinite():
            bad = value.numel() - int(value.isfinite().sum())
            if bad:  # else only the sum overflowed
                raise NonFiniteError(
                    f'{path.name} is not saved: tensor {name.removeprefix("state_dict.")} holds '
                    f'{bad} non-finite values. Resume from the checkpoint before with a lower '
                    'learning rate.'
                )


def _sum_dtype(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


def _check_space(path: Path, content: dict) -> None:
    need = _SPACE_FACTOR * sum(value.nbytes for _, value in iter_tensors(content))
    free = shutil.disk_usage(path.parent).free
    if free < need:
        raise OSError(
            errno.ENOSPC, f'need {_mb(need)}, {_mb(free)} free in {path.parent}', str(path)
        )


def _mb(size: float) -> str:
    return f'{size / 1e6:.0f} MB'


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's error that caused an error of torch's writer."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _reason(error: OSError) -> str:
    text = (error.strerror or str(error)).strip()
    return text if text.startswith('need ') else text.lower()
