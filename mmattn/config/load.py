"""Reading a config and refusing what nobody would read or what cannot fit, before anything runs."""

import re
from copy import deepcopy
from pathlib import Path

import yaml
from mmengine.config import Config
from mmengine.fileio import load

from mmattn.errors import UsageError

from . import safe_files
from .attention import add_attention, apply_attention, check_recorded_attention
from .index import find_config
from .names import CONFIG_FOLDERS
from .options import merge_options
from .options import parse_options as parse_options
from .runner_keys import RUNNER_KEYS
from .scopes import DATA_FORMATS, SCOPES, use_scope
from .source_files import read_config
from .type_names import name_types
from .unused_keys import find_class


class MissingKey(UsageError, AttributeError):
    """The config has not what a tool needs of it."""


class _Config(Config):
    """A config whose text is formatted once: mmengine asks for it eleven times in a run."""

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name not in RUNNER_KEYS:
                raise
            raise MissingKey(f'config {self.filename} has no {name}. Add it.') from error

    @property
    def pretty_text(self) -> str:
        content = repr(self._cfg_dict)
        if _FORMATTED.get('content') != content:
            _FORMATTED.update(content=content, text=super().pretty_text)
        return _FORMATTED['text']


_FORMATTED: dict[str, str] = {}  # the latest text, and of what


def load_config(
    path: str | Path, options: dict | None = None, attention: str | dict | None = None
) -> Config:
    """The config of a file with `--attention` and then `--cfg-options` merged in.

    Args:
        path: the config file, see `load_config_file`.
        options, attention: see `change_config`.

    Raises:
        UsageError, CheckpointError: as these do.
    """
    return change_config(load_config_file(path), options, attention)


def load_config_file(path: str | Path) -> Config:
    """The config of a file.

    A file in Python is executed. One in JSON or YAML is data: nothing in it is.

    Args:
        path: a file, or the name of a model: see `find_config`.

    Raises:
        UsageError: the file is missing or does not parse; one in JSON or YAML wants to execute
            something.
    """
    safe_files.install()
    if re.match(r'\w{2,}:/', str(path)):  # a Path has lost a slash
        raise UsageError(
            f'config {path}: configs are not downloaded, as they are code. Name a file or a model.'
        )
    path = find_config(path)
    code = path.suffix not in DATA_FORMATS
    try:
        if not code:
            _check_chain(path)
        # text that is put in while reading could become another parent
        cfg, file = read_config(path, code, code, code)
        object.__setattr__(cfg, '__class__', _Config)  # with all that fromfile found
        object.__setattr__(cfg, '_file', file)
        name_types(cfg)
    except UsageError:
        raise
    except yaml.YAMLError as error:
        raise UsageError(f'config {path} cannot be read: {_yaml_problem(error)}.') from error
    except ImportError as error:
        first: BaseException = error
        while first.__cause__ or first.__context__:
            first = first.__cause__ or first.__context__
        if first is error or 'custom modules' not in str(error):
            raise UsageError(f'config {path} cannot be read: {error}') from error
        raise UsageError(
            f'config {path} cannot be read: custom_imports: {first}. Install what is missing, or '
            'put its folder into PYTHONPATH.'
        ) from error
    except Exception as error:  # a config is Python: anything can be raised inside
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UsageError(f'config {path} cannot be read: {reason}') from error
    return cfg


def change_config(
    cfg: Config, options: dict | None = None, attention: str | dict | None = None
) -> Config:
    """Merge attention and then options into a config.

    Args:
        cfg: from `load_config_file`; it is changed.
        options: dotted keys and their values.
        attention: names for `add_attention`, or the `cfg.attention` that a checkpoint recorded.

    Returns:
        the same config.

    Raises:
        UsageError: the config has other attention already, or a change does not fit into it.
        CheckpointError: what the checkpoint recorded is no attention.
    """
    own = cfg.get('attention')  # of the config that a run wrote down
    if own and isinstance(attention, str) and attention != own['names']:
        raise UsageError(
            f'--attention {attention}: config {cfg.filename} has {own["names"]} already. '
            'Leave --attention out, or name the config without it.'
        )
    if attention and not own:
        if isinstance(attention, str):
            add_attention(cfg, attention)
        else:
            check_recorded_attention(cfg, attention)
            cfg.attention = attention
            apply_attention(cfg)
    options = deepcopy(options or {})  # merging takes `_delete_` out
    if options:
        merge_options(cfg, options, lambda part: _class_of(cfg, part))
        name_types(cfg)
    return cfg


def _class_of(cfg: Config, part: dict) -> type | None:
    kind = part.get('type')
    scope = part.get('_scope_') or use_scope(cfg)
    return find_class(kind, scope) if isinstance(kind, str) and _is_name(kind) else None


def _is_name(kind: str) -> bool:
    """Whether a type can be looked up without an import of what nobody asked for."""
    return '.' not in kind or kind.split('.')[0] in SCOPES


def _check_chain(path: Path) -> None:
    """Refuse a config of data that executes something, itself or through a parent."""
    if not path.is_file():
        raise UsageError(f'config {path} does not exist.')
    content = load(path)
    if not isinstance(content, dict):
        raise UsageError(f'config {path} holds a {type(content).__name__}, not keys and values.')
    if 'custom_imports' in content:
        raise UsageError(
            f'config {path}: custom_imports executes code, which a config of data must not. Leave '
            'it out, or write the config in Python.'
        )
    for parent in _parents(content):
        file = (path.parent / parent).resolve()
        if file.suffix in DATA_FORMATS:
            _check_chain(file)
        elif not any(home.resolve() in file.parents for home in CONFIG_FOLDERS):
            raise UsageError(
                f'config {path}: its parent {parent} is code, which a config of data must not '
                "execute. Parents are data, or mmattn's own configs."
            )


def _parents(content: dict) -> list[str]:
    named = content.get('_base_', [])
    return [str(one) for one in (named if isinstance(named, list) else [named])]


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, 'problem_mark', None)
    what = getattr(error, 'problem', None) or str(error)
    tag = re.search(r"constructor for the tag '(.*?)'", what)
    what = f'tag {tag[1]!r} is not allowed' if tag else what
    what = what.replace('tag:yaml.org,2002:', '!!')
    return f'line {mark.line + 1}: {what}' if mark else what
