"""A copy of a data set's images that decodes fast, read instead of the originals.

`data/NAME_cache` is next to `data/NAME`, and holds for `data/NAME/images/a.jpg` the file
`images/a.jpg.bmp`, whose pixels are those that training decodes from the original: (H, W, 3) uint8
BGR by OpenCV, rotated by EXIF, or (H, W) uint8 by Pillow for a label map. `index.json` has the size
and the time of every original. A copy whose original has changed since is not used.
"""

import json
import os
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import get_worker_info

from mmattn.errors import printable
from mmattn.log import warn
from mmattn.text import some

from .lossless import FORMATS, decode

INDEX = 'index.json'
_VERSION = 1  # of the index: others are not read
_SHOWN = 3  # files named in a warning


class Entry(NamedTuple):
    """A row of the index.

    Attributes:
        bytes: size of the original.
        mtime_ns: time of its last change.
        shape: of the decoded pixels.
        kind: format of the copy, which is the last suffix of its name.
        copy_bytes: size of the copy.
    """

    bytes: int
    mtime_ns: int
    shape: tuple[int, ...]
    kind: str
    copy_bytes: int


class Index(NamedTuple):
    """The content of `index.json`.

    Attributes:
        entries: by the path of the original, relative to the data set.
        command: writes the cache anew where it is not valid.
        complete: False while it is being written.
    """

    entries: dict[str, Entry]
    command: str
    complete: bool

    def to_json(self) -> str:
        content = dict(
            version=_VERSION,
            command=self.command,
            complete=self.complete,
            fields=Entry._fields,
            entries=self.entries,
        )
        return json.dumps(content)


def parse_index(text: str) -> Index:
    """The index from its JSON.

    Raises:
        ValueError: it is none, or of another version.
    """
    try:
        content = json.loads(text)
        if content['version'] != _VERSION:
            raise ValueError(f'version {content["version"]}, not {_VERSION}')
        entries = {_key(key): _entry(*row) for key, row in content['entries'].items()}
        return Index(entries, str(content['command']), content['complete'] is True)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'it is no index of a cache ({type(error).__name__})') from error


def _key(key: str) -> str:
    if os.path.isabs(key) or '..' in Path(key).parts:
        raise ValueError(f'{printable(key)} leaves the data set')
    return key


def _entry(size: int, mtime_ns: int, shape: list[int], kind: str, copy_bytes: int) -> Entry:
    if kind not in FORMATS:
        raise ValueError(f'unknown format {kind!r}')
    return Entry(int(size), int(mtime_ns), tuple(map(int, shape)), kind, int(copy_bytes))


def cache_folder(root: str | Path) -> Path:
    """The folder of the cache of a data set: next to the path by which the set is reached.

    Where that path is a link, nothing is written where it leads to.
    """
    path = Path(root)
    if path.name in ('', '..'):
        path = Path(os.path.abspath(path))
    return path.with_name(f'{path.name}_cache')


def copy_path(folder: str | Path, key: str, kind: str) -> str:
    """The file in a cache of an original, by its relative path and the format of the copy."""
    return os.path.join(folder, f'{key}.{kind}')


def copy_fault(original: os.stat_result, entry: Entry, path: str) -> str | None:
    """Why a copy may not be used, as the end of a sentence; None if it may.

    Args:
        original: of the original.
        entry: its row of the index.
        path: the copy.
    """
    if original.st_size != entry.bytes:
        return f'has {original.st_size} bytes, and had {entry.bytes} when it was copied'
    if original.st_mtime_ns != entry.mtime_ns:
        return 'has changed since it was copied'
    try:
        size = os.stat(path).st_size
    except OSError:
        return f'has lost its copy {path}'
    if size != entry.copy_bytes:
        return f'has a copy that is cut short: {path} has {size} of {entry.copy_bytes} bytes'
    return None


class ImageCache:
    """Reads pixels from the copies of a data set, where they are valid.

    Args:
        root: folder of the data set, as its config names it.
        index: content of the index.

    Attributes:
        folder: folder of the cache.
        faults: why a copy is not used, by the path of its original relative to the data set.
    """

    def __init__(self, root: str, index: Index) -> None:
        self.root, self.index, self.folder = root, index, cache_folder(root)
        self.faults: dict[str, str] = {}
        self._start = os.path.join(os.path.normpath(root), '')
        self._has_warned = False

    def __deepcopy__(self, memo: dict) -> 'ImageCache':
        return self  # large

    def check(self, prefixes: Iterable[str] = ('',)) -> None:
        """Compare copies with their originals; a warning names those that are not used.

        Args:
            prefixes: folders of the data set that are read, relative to it.
        """
        folders = [os.path.normpath(prefix) for prefix in prefixes]  # that of '' is '.'
        starts = tuple('' if folder == '.' else f'{folder}/' for folder in folders)
        keys = [key for key in self.index.entries if key.startswith(starts)]
        for key in keys:
            entry = self.index.entries[key]
            try:
                original = os.stat(self._start + key)
            except OSError:
                continue  # the check of the data names it, if it is of a data set
            fault = copy_fault(original, entry, copy_path(self.folder, key, entry.kind))
            if fault:
                self.faults[key] = fault
        if self.faults:
            faults = some([f'{self._start}{k} {v}' for k, v in self.faults.items()], _SHOWN)
            _warn_once(
                f'{self.folder}: {len(self.faults)} of {len(keys)} copies are not used, the '
                f'originals are read: {faults}. Write it again: {self.index.command}'
            )
        if not self.index.complete:
            _warn_once(
                f'{self.folder}: its writing has not ended, so originals without a copy are read. '
                f'Go on with it: {self.index.command}'
            )

    def read(self, path: str, *, is_label: bool = False) -> np.ndarray | None:
        """Pixels of an original from its copy; None if there is no valid one.

        Args:
            path: path of the original, as the data set names it.
            is_label: whether it is a label map.

        Returns:
            (H, W, 3) uint8 BGR, or (H, W) uint8.
        """
        path = os.path.normpath(path)
        key = path.removeprefix(self._start)
        entry = self.index.entries.get(key)
        if entry is None or key in self.faults or not path.startswith(self._start):
            return None
        copy, pixels = copy_path(self.folder, key, entry.kind), None
        try:
            original = os.stat(path)
        except OSError:
            return None  # the stock step names it
        fault = copy_fault(original, entry, copy)
        if fault is None:
            try:
                pixels = decode(np.fromfile(copy, np.uint8), is_label)
            except OSError as error:
                fault = f'has a copy that cannot be read: {error}'
        if fault is None and (pixels is None or pixels.shape != entry.shape):
            shape = 'nothing' if pixels is None else pixels.shape
            fault = f'has a damaged copy, to be removed: {copy} holds {shape}, not {entry.shape}'
        if fault:
            self._report(path, key, fault)
            return None
        return pixels

    def _report(self, path: str, key: str, fault: str) -> None:
        """Warn of the first copy that is found invalid while it is read."""
        self.faults[key] = fault
        worker = get_worker_info()
        if not self._has_warned and (worker is None or worker.id == 0):
            text = f'{path} {fault}. The original is read. Write it again: {self.index.command}'
            warn(printable(text))
        self._has_warned = True


def open_cache(root: str) -> ImageCache | None:
    """The cache of a data set; None if it has none, or an unreadable one, which a warning names.

    Args:
        root: folder of the data set.
    """
    path = cache_folder(root) / INDEX
    try:
        state = os.stat(path)
        return ImageCache(root, _read_index(str(path), state.st_mtime_ns, state.st_ino))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _warn_once(
            f'{path} cannot be read: {error}. The originals are read; remove the folder, or write '
            'it again with tools/prepare_data.py NAME --cache.'
        )
        return None


@lru_cache(maxsize=8)
def _read_index(path: str, mtime_ns: int, inode: int) -> Index:
    return parse_index(Path(path).read_text(encoding='utf-8'))


@cache
def _warn_once(text: str) -> None:
    warn(printable(text))
