"""The files of a source: found once, read as JSON or XML, and images by their names."""

import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mmattn.errors import DataError

from ..coco_entries import parse_json
from ..xml_files import read_xml
from .problems import Problems

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.tif', '.tiff', '.bmp', '.webp')
_ARCHIVES = {  # suffix -> command that unpacks it
    '.zip': 'unzip {} -d {}',
    '.tar': 'mkdir {1} && tar -xf {0} -C {1}',
    '.gz': 'mkdir {1} && tar -xf {0} -C {1}',
    '.tgz': 'mkdir {1} && tar -xf {0} -C {1}',
    '.7z': '7z x {} -o{}',
    '.rar': 'unrar x {} {}/',
}
_START = 4000  # bytes of a file by which its format is guessed
_SPLIT_WORDS = dict(
    train='train', training='train', val='val', valid='val', validation='val', test='test',
    testing='test',
)  # fmt: skip


class Source:
    """The files that `--from` names; nothing is ever written there.

    Args:
        paths: one folder, or files.
        images: folder of the images, if it is another.

    Attributes:
        root: the folder, or the one that holds the files.
        given: files that were named one by one; empty for a folder.
        files: all files below the root, sorted; links to folders are followed.
        problems: what is found to be wrong.

    Raises:
        DataError: a path does not exist, or is a packed file.
    """

    def __init__(self, paths: list[Path], images: Path | None = None) -> None:
        for path in [*paths, *([images] if images else [])]:
            if not path.exists():
                raise DataError(f'{path} does not exist. Name a folder or a file with --from.')
            refuse_archive(path)
        if len(paths) > 1:
            paths = [Path(os.path.abspath(path)) for path in paths]
        self.given = [path for path in paths if path.is_file()]
        if len(paths) > 1 and len(self.given) < len(paths):
            raise DataError('--from takes one folder, or files. Name one folder that holds all.')
        self.root = _root(paths, self.given)
        self.problems = Problems(self.root)
        self.files = list(_walk(self.root))
        self._add_folder(images)
        self._images = {
            self.relative(path): path
            for path in self.files
            if path.suffix.lower() in IMAGE_SUFFIXES
        }
        self._by_name: dict[str, list[str]] = {}
        for name in self._images:
            self._by_name.setdefault(posixpath.basename(name), []).append(name)
        self._paths = set(self.files)
        self._parsed: dict[Path, Any] = {}

    def _add_folder(self, images: Path | None) -> None:
        self._home = images
        if images and not images.resolve().is_relative_to(self.root.resolve()):
            self.files += _walk(images)

    def relative(self, path: Path) -> str:
        """The path of a file relative to the folder of the images or the root, with /."""
        for folder in filter(None, (self._home, self.root)):
            if path.is_relative_to(folder):
                return path.relative_to(folder).as_posix()
        return path.as_posix()

    @property
    def images(self) -> dict[str, Path]:
        """Images by their path relative to the root, with /."""
        return self._images

    def has(self, path: Path) -> bool:
        """Whether a file is one of the source."""
        return path in self._paths

    def has_image_named(self, name: str) -> bool:
        """Whether an image has this name in any folder."""
        return name in self._by_name

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Files of these suffixes: those that were named, or all below the folder."""
        return [p for p in self.given or self.files if p.suffix.lower() in suffixes]

    def json(self, path: Path) -> Any:
        """The content of a JSON file; kept in memory for the reader after the guess.

        Raises:
            DataError: it is not valid JSON.
        """
        if path not in self._parsed:
            try:
                content = parse_json(path.read_bytes(), str(path))
            except DataError as error:
                raise DataError(f'{path}: {error}') from error
            if len(self._parsed) >= 8:  # sets of a file per image
                return content
            self._parsed[path] = content
        return self._parsed[path]

    def first_json(self, count: int = 4) -> list[tuple[Path, Any]]:
        """The first JSON files and their content; None for one that is not valid."""
        found = []
        for path in self.with_suffix('.json')[:count]:
            try:
                found.append((path, self.json(path)))
            except DataError:
                found.append((path, None))
        return found

    def first_json_like(self, matches: Callable[[Any], Any]) -> Path | None:
        """The first of these JSON files whose content matches."""
        return next((path for path, content in self.first_json() if matches(content)), None)

    def first_xml_like(self, pattern: bytes, count: int = 4) -> Path | None:
        """The first of the first XML files in whose beginning a regular expression is found."""
        for path in self.with_suffix('.xml')[:count]:
            with open(path, 'rb') as file:
                if re.search(pattern, file.read(_START), re.DOTALL):
                    return path
        return None

    def read(self, path: Path) -> Any:
        """The content of a JSON or XML file; a damaged one is a problem, and None."""
        try:
            return read_xml(path) if path.suffix.lower() == '.xml' else self.json(path)
        except DataError as error:
            text = str(error).removeprefix(str(path)).lstrip(': ')
            self.problems.add('file', path, '', text)
            return None

    def find_image(self, name: Any, file: Path, where: str = '') -> Path | None:
        """The image that an annotation names; None, and a problem, if there is none.

        The name is looked up next to the annotation file, then below the root; then an image whose
        path has the same end. It never leads out of the source.

        Args:
            name: path as the annotation has it.
            file: the annotation file.
            where: id of the image, for messages.
        """
        if not isinstance(name, str) or not name:
            self.problems.add('no image', file, where, f'the name of its image is {name!r}')
            return None
        text = name
        if '\\' in name and name not in self._images:
            text = name.replace('\\', '/')
            self.problems.add('backslash', file, where, name)
        near = self.relative(file.parent)
        for written in dict.fromkeys((text, unquote(text))):
            for folder in near, '.':
                place = posixpath.normpath(posixpath.join(folder, written))
                if place in self._images:
                    return self._images[place]
            if found := self._same_end(written):
                is_below = found.endswith(f'/{posixpath.normpath(written)}')
                if not is_below:
                    self.problems.add('elsewhere', file, where, f'{written} is {found}')
                return self._images[found]
        count = len(self._by_name.get(posixpath.basename(text), ()))
        text = f'may be any of {count} files of that name' if count else 'is missing'
        self.problems.add('no image', file, where, f'{name} {text}')
        return None

    def _same_end(self, name: str) -> str | None:
        """The only image whose path ends as the name does, in as many folders as possible."""
        parts = [part for part in name.split('/') if part not in ('', '.', '..')]
        candidates = self._by_name.get(parts[-1], []) if parts else []
        for count in range(len(parts), 0, -1):
            end = '/'.join(parts[-count:])
            found = [c for c in candidates if c == end or c.endswith(f'/{end}')]
            if found:
                return found[0] if len(found) == 1 else None
        return None

    def split_of(self, path: Path) -> str | None:
        """The split that a file belongs to by the names of its folders; None if they say none."""
        folders = self.relative(path).split('/')[:-1]
        return next(filter(None, map(split_in, reversed(folders))), None)


def split_in(text: str) -> str | None:
    """The split that a name says: 'instances_val2017' is 'val'; None if it says none."""
    words = ''.join(c if c.isalpha() else ' ' for c in text.lower()).split()
    found = {_SPLIT_WORDS[w.removesuffix('annot')] for w in words
             if w.removesuffix('annot') in _SPLIT_WORDS}  # fmt: skip
    return found.pop() if len(found) == 1 else None


def refuse_archive(path: Path) -> None:
    """Refuse a packed file.

    Raises:
        DataError: with the command that unpacks it.
    """
    command = _ARCHIVES.get(path.suffix.lower())
    if path.is_file() and command:
        target = path.with_name(path.name.split('.')[0])
        raise DataError(
            f'{path} is packed, and packed files are not read. Run: '
            f'{command.format(path, target)}, then name {target} with --from.'
        )


def _root(paths: list[Path], given: list[Path]) -> Path:
    if not given:
        return paths[0]
    root = Path(os.path.commonpath([path.parent for path in given]))
    return root.parent if root.name == 'annotations' else root


def _walk(root: Path) -> list[Path]:
    """All files below a folder, sorted; hidden ones and those of macOS left out."""
    found, seen = [], set()

    def refuse(error: OSError) -> None:
        raise error  # a folder that must not be read, which os.walk leaves out

    for folder, names, files in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above
            names.clear()
            continue
        seen.add(real)
        names[:] = [n for n in names if not n.startswith('.') and n != '__MACOSX']
        found += [Path(folder, name) for name in files if not name.startswith('.')]
    return sorted(found)
