"""The files that mmengine reads for a config: their parents, keys and variables."""

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

_READERS = ('_file2dict', '_parse_lazy_import')  # for `_base_`, and for `read_base`
_LOCK = threading.RLock()


@dataclass
class ConfigFile:
    """One file and the parents that mmengine found for it.

    Attributes:
        path: absolute path of the file, or of a config that has none, see `names`.
        keys: dotted keys of the values of the file with its parents, if it came with an installed
            package and so did they; else none.
        parents: parents in the order in which the file names them.
    """

    path: Path
    keys: frozenset[str] = frozenset()
    parents: list['ConfigFile'] = field(default_factory=list)

    def __deepcopy__(self, memo: dict) -> 'ConfigFile':
        return self  # immutable once it is read

    @functools.cached_property
    def source(self) -> '_Source':
        return _Source(self.path)

    def chain(self) -> Iterator['ConfigFile']:
        """This file and all its ancestors."""
        yield self
        for parent in self.parents:
            yield from parent.chain()

    def file_with(self, key: str) -> Path | None:
        """The file of an installed package that has a dotted key; None if it is the user's own."""
        return next((file.path for file in self.chain() if key in file.keys), None)

    def package_file(self, name: str) -> Path | None:
        """The file that sets a top-level name last, if no user wrote it; None if one did.

        Such files come with an installed package, or mmengine dumped them, with all variables of
        their parents.
        """
        files = [f for f in self.chain() if name in {target for target, _ in f.source.assigned}]
        if files and (is_installed(files[0].path) or files[0].source.is_dump):
            return files[0].path
        return None

    def variables(self) -> set[str]:
        """Top-level names that are used inside the files themselves.

        A variable that a file sets again has no effect on the parent that used it.
        """
        inherited = [parent.variables() - self.source.set_again for parent in self.parents]
        return self.source.used.union(*inherited)

    def parent_using(self, name: str) -> Path | None:
        """The parent that used a variable before this file set it again."""
        files = [file for parent in self.parents for file in parent.chain()]
        return next((file.path for file in files if name in file.source.used), None)

    def uses(self, name: str) -> list[str]:
        """Dotted keys whose values contain a variable."""
        keys = [key for file in self.chain() for key in file.source.uses(name)]
        return list(dict.fromkeys(keys))


class _Source:
    """Variables in the text of a file.

    Attributes:
        used: names that an expression of the file uses.
        assigned: top-level names and the expressions that they are set to.
        set_again: names that are set and not used.
        is_dump: whether mmengine wrote the file: values alone, sorted by name.
    """

    def __init__(self, path: Path) -> None:
        text = config_text(path) or path.read_text(encoding='utf-8')
        self.used = set(re.findall(r'\{\{\s*_base_\.(\w+)', text))
        self.assigned: list[tuple[str, ast.expr]] = []
        self.is_dump = False
        if path.suffix == '.py':
            self._parse(ast.parse(text))
        self.set_again = {name for name, _ in self.assigned} - self.used - {'_base_'}

    def _parse(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if (name := _variable(node)) and isinstance(node.ctx, ast.Load):
                self.used.add(name)
        for node in tree.body:
            if isinstance(node, ast.Assign):
                targets = [t.id for t in node.targets if isinstance(t, ast.Name)]
                self.assigned += [(name, node.value) for name in targets]
        names = [name for name, _ in self.assigned]
        values_alone = self.used <= {'dict'} and len(names) == len(tree.body) > 1
        self.is_dump = values_alone and names == sorted(names) and '_base_' not in names

    def uses(self, name: str, visited: tuple[str, ...] = ()) -> list[str]:
        """Dotted keys of this file whose values contain a variable, directly or through others."""
        keys = []
        for target, value in self.assigned:
            for key in _keys_with(value, name, target):
                keys.append(key)
                if target not in visited:  # the target may be a variable itself
                    rest = key.removeprefix(target)
                    keys += [f'{use}{rest}' for use in self.uses(target, (*visited, target))]
        return keys


def _variable(node: ast.AST) -> str | None:
    """The name of a variable; of one of a parent, too: `_base_.name`."""
    if isinstance(node, ast.Name):
        return node.id
    base = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return node.attr if base and node.value.id == '_base_' else None


def _keys_with(node: ast.expr, name: str, key: str) -> Iterator[str]:
    """Dotted keys, from `key` on, below which an expression contains a variable."""
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
        for word in node.keywords:
            yield from _keys_with(word.value, name, f'{key}.{word.arg}' if word.arg else key)
    elif isinstance(node, ast.Dict):
        for item, value in zip(node.keys, node.values):
            is_known = isinstance(item, ast.Constant)
            yield from _keys_with(value, name, f'{key}.{item.value}' if is_known else key)
    elif isinstance(node, ast.List | ast.Tuple):
        for index, value in enumerate(node.elts):
            yield from _keys_with(value, name, f'{key}.{index}')
    elif any(_variable(part) == name for part in ast.walk(node)):
        yield key


def read_config(path: Path, *options: bool) -> tuple[Config, ConfigFile]:
    """A config as `Config.fromfile` returns it, and the files that were read for it."""
    top = ConfigFile(path)
    with _LOCK, _recorded(top):
        cfg = Config.fromfile(path, *options)
    return cfg, top.parents[0]


@contextlib.contextmanager
def _recorded(top: ConfigFile) -> Iterator[None]:
    """Record every file that mmengine reads as a parent of the one that names it."""
    open_files = [top]
    copies: dict[str, str] = {}  # temporary file of a config that has none -> path of the config

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
    """Read a file by mmengine; a config without a file through a temporary one."""
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
    """The path of a parent as mmengine finds it, or in a package of another distribution name."""
    try:
        return find(name, child)
    except ModuleNotFoundError:  # mmengine looks for the distribution mmsegmentation, not mmseg
        package, _, path = name.partition('::')
        spec = find_spec(package) if package.isidentifier() else None
        home = Path(spec.origin).parent / '.mim' / 'configs' if spec and spec.origin else None
        if home is None or not home.is_dir():
            raise
        if not (home / path).is_file():
            raise FileNotFoundError(f'{package} has no config {path}') from None
        return str(home / path), package


def _keys(value: Any, prefix: str = '') -> Iterator[str]:
    """Dotted keys of all values of a config."""
    if isinstance(value, dict):
        for name, item in dict.items(value):
            key = f'{prefix}.{name}' if prefix else str(name)
            yield key
            yield from _keys(item, key)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _keys(item, f'{prefix}[{index}]')


def is_installed(path: Path) -> bool:
    """Whether a config came with an installed package, or is an unchanged copy of one that did."""
    if not {'.mim', 'site-packages', 'dist-packages'}.isdisjoint(path.parts):
        return True
    if 'configs' not in path.parts:
        return False
    below = path.parts[len(path.parts) - path.parts[::-1].index('configs') :]
    for package in 'mmdet', 'mmseg':
        spec = find_spec(package)
        twin = Path(spec.origin).parent.joinpath('.mim', 'configs', *below) if spec else path
        both_exist = twin != path and twin.is_file() and path.is_file()
        if both_exist and twin.read_bytes() == path.read_bytes():
            return True
    return False


def display_path(path: Path) -> str:
    """A path relative to the working directory where it lies below that."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
