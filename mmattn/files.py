"""Files that commands write: atomic writes, hashes, and checks of a folder before the work."""

import errno
import hashlib
import os
import tempfile
from pathlib import Path

from mmattn.errors import UsageError, WriteError


def check_writable(folder: Path, flag: str = '--work-dir') -> None:
    """Make a folder and check that files can be written into it.

    Args:
        folder: the folder.
        flag: command line flag or config key that names the folder, for the message.

    Raises:
        WriteError: the folder cannot be made or written to.
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


def check_empty(folder: Path, flag: str = '--out-dir') -> None:
    """Make a folder and refuse files of an earlier run, which could be mixed up.

    Args:
        folder: the folder.
        flag: command line flag that names the folder, for the message.

    Raises:
        UsageError: the folder is not empty.
        WriteError: see `check_writable`.
    """
    check_writable(folder, flag)
    if any(folder.iterdir()):
        raise UsageError(f'{flag} {folder} is not empty. Choose a new folder, or empty it.')


_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def sha256(path: str | Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 18))
    with open(path, 'rb', buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file atomically: at any time, `path` is the complete old or new file."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically: at any time, `path` is the complete old or new file."""
    part = path.with_name(f'{path.name}.part')
    with open(part, 'wb') as file:
        file.write(content)
        file.flush()
        sync_file(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the file system supports it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in (*_CANNOT_SYNC, errno.EACCES, errno.EISDIR):
            return  # folders cannot be opened, as on Windows
        raise
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def sync_file(descriptor: int) -> None:
    """Flush a file to the disk, where the file system supports it: FUSE and SMB may not."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
