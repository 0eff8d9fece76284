"""The files of a config as mmengine reads them: parents, whose a key is, who reads a variable."""

import ast
import contextlib
import functools
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .names import config_text

_READERS = ('_file2dict', '_parse_lazy_import')  # of text configs, of those with `read_base`
_LOCK = threading.RLock()
_SHOWN = 6  # keys named in a sentence


@dataclass
class ConfigFile:
    """One file and the parents that mmengine found for it.

    Attributes:
        path: of the file.
        keys: dotted, of all that the file and its parents say; of files of installed packages.
        parents: in their order.
    """

    path: Path
    keys: frozenset[str] = frozenset()
    parents: list['ConfigFile'] = field(default_factory=list)

    def __deepcopy__(self, memo: dict) -> 'ConfigFile':
        return self  # it does not change

    @functools.cached_property
    def source(self) -> '_Source':
        return _Source(self.path)

    def chain(self) -> Iterator['ConfigFile']:
        """This file and all above it."""
        yield self
        for parent in self.parents:
            yield from parent.chain()

    def carries(self, key: str) -> Path | None:
        """The file of an installed package that has the key; None if it is the user's own."""
        return next((file.path for file in self.chain() if key in file.keys), None)

    def owner(self, name: str) -> Path | None:
        """The file that sets a top-level name last, if nobody wrote it there: None if one did.

        It came with an installed package, or mmengine wrote it, with all variables of its parents.
        """
        sets = [f for f in self.chain() if name in {target for target, _ in f.source.assigned}]
        if sets and (is_installed(sets[0].path) or sets[0].source.dumped):
            return sets[0].path
        return None

    def variables(self) -> set[str]:
        """Top-level names that the files themselves read.

        A variable that a file sets again is not read by the parent that used it.
        """
        above = [parent.variables() - self.source.set_again for parent in self.parents]
        return self.source.read.union(*above)

    def reader(self, name: str) -> Path | None:
        """The parent that read a variable before this file set it again."""
        files = [file for parent in self.parents for file in parent.chain()]
        return next((file.path for file in files if name in file.source.read), None)

    def uses(self, name: str) -> list[str]:
        """The keys, dotted, into which a variable goes."""
        found = [use for file in self.chain() for use in file.source.uses(name)]
        return list(dict.fromkeys(found))


class _Source:
    """What the text of a file reads and sets."""

    def __init__(self, path: Path) -> None:
        text = config_text(path) or path.read_text(encoding='utf-8')
        self.read = set(re.findall(r'\{\{\s*_base_\.(\w+)', text))
        self.assigned: list[tuple[str, ast.expr]] = []
        self.dumped = False
        if path.suffix == '.py':
            self._parse(ast.parse(text))
        self.set_again = {name for name, _ in self.assigned} - self.read - {'_base_'}

    def _parse(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if (name := _variable(node)) and isinstance(node.ctx, ast.Load):
                self.read.add(name)
        for node in tree.body:  # mmengine writes values alone, by name
            if isinstance(node, ast.Assign):
                targets = [t.id for t in node.targets if isinstance(t, ast.Name)]
                self.assigned += [(name, node.value) for name in targets]
        names = [name for name, _ in self.assigned]
        values_alone = self.read <= {'dict'} and len(names) == len(tree.body) > 1
        self.dumped = values_alone and names == sorted(names) and '_base_' not in names

    def uses(self, name: str, seen: tuple[str, ...] = ()) -> list[str]:
        found = []
        for target, value in self.assigned:
            for place in _places(value, name, target):
                found.append(place)
                if target not in seen:  # which may go into another variable
                    rest = place.removeprefix(target)
                    found += [f'{use}{rest}' for use in self.uses(target, (*seen, target))]
        return found


def _variable(node: ast.AST) -> str | None:
    """The name of a variable, also one of a parent: `_base_.name`."""
    if isinstance(node, ast.Name):
        return node.id
    base = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return node.attr if base and node.value.id == '_base_' else None


def _places(node: ast.expr, name: str, where: str) -> Iterator[str]:
    """Where below `where` the expression has the variable."""
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
        for word in node.keywords:
            yield from _places(word.value, name, f'{where}.{word.arg}' if word.arg else where)
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values):
            known = isinstance(key, ast.Constant)
            yield from _places(value, name, f'{where}.{key.value}' if known else where)
    elif isinstance(node, ast.List | ast.Tuple):
        for index, value in enumerate(node.elts):
            yield from _places(value, name, f'{where}.{index}')
    elif any(_variable(part) == name for part in ast.walk(node)):
        yield where


def read_config(path: Path, *options: bool) -> tuple[Config, ConfigFile]:
    """What `Config.fromfile` makes of a file, and which files it read for that."""
    top = ConfigFile(path)
    with _LOCK, _recorded(top):
        cfg = Config.fromfile(path, *options)
    return cfg, top.parents[0]


@contextlib.contextmanager
def _recorded(top: ConfigFile) -> Iterator[None]:
    """Note every file that mmengine reads, below the one that named it."""
    open_files = [top]
    copies: dict[str, str] = {}  # file with the text of a config that has none -> its path

    def recording(read):
        def wrapped(filename, *args, **kwargs):
            file = ConfigFile(Path(filename).expanduser().absolute())
            open_files[-1].parents.append(file)
            open_files.append(file)
            try:
                result = _read(read, file.path, copies, filename, *args, **kwargs)
            finally:
                open_files.pop()
            if is_installed(file.path) and all(parent.keys for parent in file.parents):
                file.keys = frozenset(_keys(result[0]))
            return result

        return staticmethod(wrapped)

    def find(name, child):
        return _find(before['_get_cfg_path'].__func__, name, copies.get(child, child))

    def is_lazy(filename):
        return config_text(Path(filename)) is None and before['_is_lazy_import'].__func__(filename)

    before = {name: vars(Config)[name] for name in (*_READERS, '_get_cfg_path', '_is_lazy_import')}
    try:
        for name in _READERS:
            setattr(Config, name, recording(before[name].__func__))
        Config._get_cfg_path, Config._is_lazy_import = staticmethod(find), staticmethod(is_lazy)
        yield
    finally:
        for name, read in before.items():
            setattr(Config, name, read)


def _read(read: Callable, path: Path, copies: dict[str, str], filename: str, *args, **kwargs):
    """What mmengine reads of a file, or of the text of a config that has no file."""
    text = config_text(path)
    if text is None:
        return read(filename, *args, **kwargs)
    with tempfile.TemporaryDirectory() as folder:
        copy = str(Path(folder).resolve() / path.name)
        Path(copy).write_text(text, encoding='utf-8')
        copies[copy] = str(path)
        values, full_text, variables = read(copy, *args, **kwargs)
    return values, full_text.replace(copy, str(path)), variables


def _find(find: Callable, name: str, child: str) -> tuple[str, str | None]:
    """A parent as mmengine finds it; of a package that is installed under another name, too."""
    try:
        return find(name, child)
    except ModuleNotFoundError:  # mmengine asks for mmsegmentation, not for mmseg
        package, _, path = name.partition('::')
        spec = find_spec(package) if package.isidentifier() else None
        home = Path(spec.origin).parent / '.mim' / 'configs' if spec and spec.origin else None
        if home is None or not home.is_dir():
            raise
        if not (home / path).is_file():
            raise FileNotFoundError(f'{package} has no config {path}') from None
        return str(home / path), package


def _keys(value: Any, where: str = '') -> Iterator[str]:
    """The dotted keys of all that is in a config."""
    if isinstance(value, dict):
        for key, item in dict.items(value):
            place = f'{where}.{key}' if where else str(key)
            yield place
            yield from _keys(item, place)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _keys(item, f'{where}[{index}]')


def is_installed(path: Path) -> bool:
    """Whether a config came with an installed package, or is a true copy of one that did."""
    if not {'.mim', 'site-packages', 'dist-packages'}.isdisjoint(path.parts):
        return True
    if 'configs' not in path.parts:
        return False
    below = path.parts[len(path.parts) - path.parts[::-1].index('configs') :]
    for package in 'mmdet', 'mmseg':
        spec = find_spec(package)
        twin = Path(spec.origin).parent.joinpath('.mim', 'configs', *below) if spec else path
        there = twin != path and twin.is_file() and path.is_file()
        if there and twin.read_bytes() == path.read_bytes():
            return True
    return False


def shown(path: Path) -> str:
    """A file as one would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def listed(names: list[str]) -> str:
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more
