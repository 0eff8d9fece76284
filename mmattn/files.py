"""Files and folders that commands write: whole or not at all, and refused before the work."""

import errno
import hashlib
import os
import tempfile
from pathlib import Path

from mmattn.errors import UsageError, WriteError


def check_writable(folder: Path, flag: str = '--work-dir') -> None:
    """Make a folder and see that it can be written to; `flag` is what chose it.

    Raises:
        WriteError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise WriteError(
            f'cannot write to {folder}: {reason}. Choose another folder with {flag}.'
        ) from error


def check_empty(folder: Path) -> None:
    """Refuse what an earlier run left: it would be taken for this one's."""
    check_writable(folder, '--out-dir')
    if any(folder.iterdir()):
        raise UsageError(f'--out-dir {folder} is not empty. Choose a new folder, or empty it.')


_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def sha256(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 18))
    with open(path, 'rb', buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that at any moment the old or the new one is whole."""
    part = path.with_name(f'{path.name}.part')
    with open(part, 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        sync_file(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in (*_CANNOT_SYNC, errno.EACCES, errno.EISDIR):
            return  # a folder that cannot be opened, as on Windows
        raise
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def sync_file(descriptor: int) -> None:
    """Have the system write to the disk, where the file system knows how: FUSE and SMB may not."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
