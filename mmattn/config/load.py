"""Loading a config, and merging attention and options into it."""

import re
from copy import deepcopy
from pathlib import Path

import yaml
from mmengine.config import Config
from mmengine.fileio import load

from mmattn.errors import UsageError

from . import safe_files
from .attention import add_attention, apply_attention, check_recorded_attention
from .data_set import add_data_set
from .index import find_config
from .names import CONFIG_FOLDERS
from .options import merge_options
from .options import parse_options as parse_options
from .registered import find_class
from .runner_keys import RUNNER_KEYS
from .scopes import DATA_FORMATS, SCOPES, use_scope
from .source_files import read_config
from .type_names import name_types


class MissingKey(UsageError, AttributeError):
    """The config lacks a key that a command needs."""


class _Config(Config):
    """A config that caches its formatted text, which mmengine reads eleven times in a run."""

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
        if _pretty_text.get('content') != content:
            _pretty_text.update(content=content, text=super().pretty_text)
        return _pretty_text['text']


_pretty_text: dict[str, str] = {}  # the latest text, and the content that it is of


def load_config(
    path: str | Path,
    options: dict | None = None,
    attention: str | dict | None = None,
    data: str | dict | None = None,
) -> Config:
    """Load a config, and merge `--data`, `--attention` and then `--cfg-options` into it.

    Args:
        path: the config file, see `load_config_file`.
        options, attention, data: see `change_config`.

    Raises:
        UsageError, CheckpointError: as these do.
    """
    return change_config(load_config_file(path), options, attention, data)


def load_config_file(path: str | Path) -> Config:
    """Load a config without changes.

    A file in Python is executed. Nothing in a file in JSON or YAML is.

    Args:
        path: path of a file, or name of a model: see `find_config`.

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
    is_code = path.suffix not in DATA_FORMATS
    try:
        if not is_code:
            _check_data_files(path)
        # without substitutions in data: `{{ ... }}` could name another parent
        cfg, file = read_config(path, is_code, is_code, is_code)
        object.__setattr__(cfg, '__class__', _Config)  # keeps all attributes that fromfile set
        object.__setattr__(cfg, '_file', file)
        name_types(cfg)
    except UsageError:
        raise
    except yaml.YAMLError as error:
        raise UsageError(f'config {path} cannot be read: {_yaml_problem(error)}.') from error
    except ImportError as error:
        root_cause: BaseException = error
        while root_cause.__cause__ or root_cause.__context__:
            root_cause = root_cause.__cause__ or root_cause.__context__
        if root_cause is error or 'custom modules' not in str(error):
            raise UsageError(f'config {path} cannot be read: {error}') from error
        raise UsageError(
            f'config {path} cannot be read: custom_imports: {root_cause}. Install what is missing, '
            'or put its folder into PYTHONPATH.'
        ) from error
    except Exception as error:  # a config is Python: anything can be raised inside
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UsageError(f'config {path} cannot be read: {reason}') from error
    return cfg


def change_config(
    cfg: Config,
    options: dict | None = None,
    attention: str | dict | None = None,
    data: str | dict | None = None,
) -> Config:
    """Merge a data set, attention and then options into a config.

    Args:
        cfg: from `load_config_file`; it is changed.
        options: dotted keys and their values.
        attention: names for `add_attention`, or the `cfg.attention` that a checkpoint recorded.
        data: a name for `add_data_set`, or the `cfg.data_set` that a checkpoint recorded.

    Returns:
        the same config.

    Raises:
        UsageError: the config has another data set or other attention already, or a change does
            not fit into it.
        CheckpointError: what the checkpoint recorded is no attention.
    """
    if data:
        name, recorded = data if isinstance(data, str) else data['name'], cfg.get('data_set')
        if recorded and recorded['name'] != name:
            raise UsageError(
                f'--data {name}: config {cfg.filename} has {recorded["name"]} already. Leave '
                '--data out, or name the config without it.'
            )
        if not recorded:
            add_data_set(cfg, data)
            name_types(cfg)
    recorded = cfg.get('attention')  # in a config that a run dumped
    if recorded and isinstance(attention, str) and attention != recorded['names']:
        raise UsageError(
            f'--attention {attention}: config {cfg.filename} has {recorded["names"]} already. '
            'Leave --attention out, or name the config without it.'
        )
    if attention and not recorded:
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
    name = part.get('type')
    scope = part.get('_scope_') or use_scope(cfg)
    return find_class(name, scope) if isinstance(name, str) and _is_registered(name) else None


def _is_registered(name: str) -> bool:
    """Whether looking up a type imports nothing but mmattn and OpenMMLab's packages."""
    return '.' not in name or name.split('.')[0] in SCOPES


def _check_data_files(path: Path) -> None:
    """Refuse a config in JSON or YAML that would execute code, itself or through a parent."""
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
            _check_data_files(file)
        elif not any(folder.resolve() in file.parents for folder in CONFIG_FOLDERS):
            raise UsageError(
                f'config {path}: its parent {parent} is code, which a config of data must not '
                "execute. Parents are data, or mmattn's own configs."
            )


def _parents(content: dict) -> list[str]:
    parents = content.get('_base_', [])
    return [str(parent) for parent in (parents if isinstance(parents, list) else [parents])]


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, 'problem_mark', None)
    message = getattr(error, 'problem', None) or str(error)
    tag = re.search(r"constructor for the tag '(.*?)'", message)
    message = f'tag {tag[1]!r} is not allowed' if tag else message
    message = message.replace('tag:yaml.org,2002:', '!!')
    return f'line {mark.line + 1}: {message}' if mark else message
