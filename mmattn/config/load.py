"""Reading a config and refusing what nobody would read or what cannot fit, before anything runs."""

import contextlib
import inspect
import io
import logging
import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from importlib import import_module
from pathlib import Path

import yaml
from mmengine.config import Config, ConfigDict
from mmengine.fileio import load
from mmengine.logging import print_log
from mmengine.registry import init_default_scope

from mmattn.errors import CheckpointError, UsageError

from . import safe_files  # noqa: F401, nothing below reads a file before it is safe
from .options import merge_options
from .options import parse_options as parse_options
from .runner_keys import RUNNER_KEYS, check_runner_keys
from .source_files import ConfigFile, listed, read_config, shown
from .type_names import REGISTRIES, name_types, unnamed
from .unused_keys import FUNCTIONS, UNREGISTERED, check_keys, find_class, nearest

_DATA = ('.json', '.yaml', '.yml')  # configs that are data; those in Python are code
_SCOPES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmattn')
_EVALUATING = ('RFSearchHook', 'CameraMotionCompensation')  # call eval on what they are given
_HERE = Path(__file__).parents[1]
_HOMES = (_HERE.parent / 'configs', _HERE / '.mim' / 'configs')  # of mmattn's own configs


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

    A file in Python is executed. One in JSON or YAML is data: nothing in it is.

    Args:
        path: of the file.
        options: dotted keys and their values.
        attention: names for `add_attention`, or what a checkpoint has of `cfg.attention`.

    Raises:
        UsageError: the file is missing or does not parse, or a change does not fit into it; one in
            JSON or YAML wants to execute something.
        CheckpointError: what a checkpoint has is no attention.
    """
    if re.match(r'\w{2,}:/', str(path)):  # a Path has lost a slash
        raise UsageError(
            f'config {path}: configs are not downloaded, as they are code. Name a file or a model.'
        )
    path = Path(path)
    if not path.is_file():
        near = nearest(path.stem, [p.stem for p in path.parent.glob('*.py')])
        raise UsageError(f'config {path} does not exist.{near}')
    code = path.suffix not in _DATA
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
    own = cfg.get('attention')  # of the config that a run wrote down
    if own and isinstance(attention, str) and attention != own['names']:
        raise UsageError(
            f'--attention {attention}: config {path} has {own["names"]} already. Leave --attention '
            'out, or name the config without it.'
        )
    if attention and not own:
        if isinstance(attention, str):
            add_attention(cfg, attention)
        else:
            _check_recorded(cfg, attention)
            cfg.attention = attention
            apply_attention(cfg)
    options = deepcopy(options or {})  # merging takes `_delete_` out
    if options:
        merge_options(cfg, options, lambda part: _class_of(cfg, part))
        name_types(cfg)
    return cfg


def _class_of(cfg: Config, part: dict) -> type | None:
    kind = part.get('type')
    scope = part.get('_scope_') or _use_scope(cfg)
    return find_class(kind, scope) if isinstance(kind, str) and _is_name(kind) else None


def _is_name(kind: str) -> bool:
    """Whether a type can be looked up without an import of what nobody asked for."""
    return '.' not in kind or kind.split('.')[0] in _SCOPES


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
        if file.suffix in _DATA:
            _check_chain(file)
        elif not any(home.resolve() in file.parents for home in _HOMES):
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


def _check_recorded(cfg: Config, attention: dict) -> None:
    """Refuse what a checkpoint has of attention if a type in it is not registered.

    The checkpoint may be a stranger's, and mmengine takes the path of any function for a type.
    """
    parts = {key: attention[key] for key in ('plugins', 'backbone')}
    wrong = _unregistered(parts, _use_scope(cfg))
    if wrong:
        raise CheckpointError(
            f'the attention that the checkpoint records is refused: {wrong}. Ask its author for '
            'weights that tools/publish.py wrote.'
        )


def _unregistered(value, scope: str, where: str = '') -> str | None:
    """The first `type` below `value` that is no registered name, or scope of another, in words."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        place = f'{where}[{key}]' if isinstance(key, int) else f'{where}.{key}'.lstrip('.')
        if key == 'type' and not _is_known(item, where, scope):
            return f'{place} is {item!r}, which is not registered'
        if key == '_scope_' and item not in _SCOPES:
            return f'{place} is {item!r}, which is no scope'
        if isinstance(item, dict | list | tuple) and (found := _unregistered(item, scope, place)):
            return found
    return None


def _is_known(name, where: str, scope: str) -> bool:
    """Whether a type is registered, or one of the functions that are none; never imports one."""
    if where.endswith(UNREGISTERED):  # mmcv evaluates that of nms
        return name in FUNCTIONS
    if not isinstance(name, str) or not re.fullmatch(r'\w+(\.\w+)?', name):
        return False
    if name.split('.')[-1] in _EVALUATING:
        return False
    if '.' in name and name.split('.')[0] not in _SCOPES:
        return False  # mmengine would import its module
    found = find_class(name, scope)
    nodes = [node for registry in REGISTRIES for node in (registry, *registry.children.values())]
    return any(found is known for node in nodes for known in node.module_dict.values())


def add_attention(cfg: Config, names: str) -> None:
    """Put blocks into the network of a config, each where its authors have it.

    The placements are `_base_/attention/<name>.py` beside the config or in mmattn's own configs.
    What was put stands in `cfg.attention`: the names, and the plugins as they are.

    Args:
        cfg: of a detector or segmentor; changed.
        names: one or several, 'cbam' or 'se,gc', in the order in which they apply; 'none' for none.

    Raises:
        UsageError: no such name; a network that takes no plugins.
    """
    plugins, backbone = [], {}
    own = _backbone(cfg)
    for name in [n for n in names.split(',') if n != 'none']:
        placement = Config.fromfile(_placement(cfg, name))
        plugins += placement.get('plugins', [])
        if 'backbones' in placement:
            kind = own.type.split('.')[-1]
            if kind not in placement.backbones:
                raise UsageError(
                    f'--attention {name} is a backbone instead of '
                    f'{" or ".join(placement.backbones)}; the config has {kind}.'
                )
            backbone = dict(placement.arguments, type=placement.backbones[kind])
    cfg.attention = dict(names=names, plugins=plugins, backbone=backbone)
    apply_attention(cfg)


def apply_attention(cfg: Config) -> None:
    """Put what stands in `cfg.attention` into the network."""
    _backbone(cfg).update(cfg.attention['backbone'])
    plugins = cfg.attention['plugins']
    if not plugins:
        return
    from mmattn.models.with_plugins import plugged_type

    scope = cfg.model.get('_scope_') or _use_scope(cfg)
    network = find_class(cfg.model.type, scope)
    name = plugged_type(network) if inspect.isclass(network) else None
    if name is None:
        raise UsageError(
            f'--attention: {cfg.model.type} is no detector of mmdet and no segmentor of mmseg, so '
            'it takes no plugins. Derive its class from mmattn.models.with_plugins.Plugged, too.'
        )
    cfg.model.type = name or cfg.model.type
    cfg.model.plugins = [*cfg.model.get('plugins', []), *plugins]


def _backbone(cfg: Config) -> ConfigDict:
    if 'backbone' not in (cfg.get('model') or {}):
        raise UsageError(
            f'--attention: config {cfg.filename} has no model.backbone to put it into.'
        )
    return cfg.model.backbone


def _placement(cfg: Config, name: str) -> Path:
    own = Path(cfg.filename)
    homes = _HOMES if own.suffix in _DATA else (own.parent, *_HOMES)
    folders = [home / '_base_' / 'attention' for home in homes]
    for folder in folders:
        if name and (folder / f'{name}.py').is_file():
            return folder / f'{name}.py'
    known = sorted({path.stem for folder in folders for path in folder.glob('*.py')})
    raise UsageError(
        f'--attention {name}: no such placement.{nearest(name, known)} Known: {", ".join(known)}.'
    )


def check_config(cfg: Config, options: Iterable[str] = ()) -> None:
    """Refuse a key that nobody reads and a type that nobody registered; drop used-up variables.

    Args:
        cfg: a config made by `load_config`.
        options: the top-level names given by `--cfg-options`, which no file reads any more.

    Raises:
        UsageError: names the key, where it stands, and the nearest key that is read.
    """
    given, carried = set(options), {}
    file: ConfigFile | None = cfg.__dict__.get('_file')
    unread = set(cfg.keys()) - RUNNER_KEYS - ({'custom_imports'} - given)
    variables = file.variables() if file else set()
    for name in sorted(unread - variables | (given & unread)):
        owner = file.owner(name) if file and name not in given else None
        if not owner:
            raise UsageError(_unread(cfg, file, name, name in variables))
        carried[name] = owner
    for name in unread:  # the config that a run writes down can be read again
        cfg.pop(name)
    check_runner_keys(cfg)
    scope = _use_scope(cfg)
    if Path(str(cfg.filename)).suffix in _DATA:
        wrong = _unregistered(cfg.to_dict(), scope)
        if wrong:
            raise UsageError(f'config key {wrong}; a config of data names nothing else.')
    if 'type' not in (cfg.get('model') or {}):
        raise UsageError(f'config {cfg.filename} has no model with a type.')
    known = set(cfg.get('unused_keys') or ())
    unused = check_keys(cfg, scope, lambda key: key in known or bool(file and file.carries(key)))
    if unused:
        cfg.unused_keys = unused
        carried |= {key: file.carries(key) or file.path for key in unused} if file else {}
    _warn_of(cfg, carried)
    _check_order(cfg.model, scope)


def _unread(cfg: Config, file: ConfigFile | None, name: str, variable: bool) -> str:
    """What to say of a name that no part of the config takes up."""
    start = f'config key {name} is read by nobody'
    parent = file.reader(name) if file else None
    if not variable and not parent:
        return f'{start}.{nearest(name, RUNNER_KEYS)}'
    uses = [use for use in file.uses(name) if _holds(cfg, use)]
    remedy = f'et what uses it{": " if uses else ""}{listed(uses)}.'
    if variable:
        return f'{start}. It is a variable of the file, used up when that was read; s{remedy}'
    return f'{start}: it is a variable of {shown(parent)}, used up when that was read. S{remedy}'


def _holds(cfg: Config, key: str) -> bool:
    """Whether a dotted key is one of the config that is read."""
    value = cfg if key.split('.')[0] in RUNNER_KEYS else {}
    for part in key.split('.'):
        try:
            value = value[int(part)] if isinstance(value, list | tuple) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return False
    return True


def _warn_of(cfg: Config, carried: dict[str, Path]) -> None:
    """Say which keys come with a package and change nothing, and what a file cannot hold."""
    for path in dict.fromkeys(carried.values()):
        keys = [key for key, owner in carried.items() if owner == path]
        many = 'keys' if len(keys) > 1 else 'key'
        text = f'config {many} {listed(keys)} of {shown(path)}: nothing reads'
        print_log(f'{text} {"them" if len(keys) > 1 else "it"}', 'current', logging.WARNING)
    for key in unnamed(cfg._cfg_dict):
        print_log(
            f'config key {key} is a class or function: the config that a run writes down has but '
            'its name there, so use the file itself to resume or test',
            'current',
            logging.WARNING,
        )


def _use_scope(cfg: Config) -> str:
    """Put the registries of a config's scope in place; returns the scope."""
    scope = cfg.get('default_scope', 'mmengine')
    if scope not in _SCOPES and Path(str(cfg.filename)).suffix in _DATA:
        raise UsageError(
            f'config key default_scope={scope!r}: allowed in a config of data are '
            f'{", ".join(_SCOPES)}.'
        )
    init_default_scope(scope)
    for name in scope, 'mmdet', 'mmseg':  # our metrics need both; they print about what they miss
        with contextlib.suppress(ImportError), contextlib.redirect_stdout(io.StringIO()):
            import_module(f'{name}.datasets')
    return scope


def _check_order(model: dict, scope: str) -> None:
    """Networks of mmdet and mmseg do not put every plugin of a backbone where it is written."""
    backbone = model.get('backbone') or {}
    plugins = backbone.get('plugins')
    scope = model.get('_scope_') or scope
    network = find_class(model['type'], scope)
    if not plugins or not inspect.isclass(network) or getattr(network, 'keeps_learning', False):
        return
    settings = getattr(find_class(backbone['type'], scope), 'arch_settings', {})
    block = settings.get(backbone.get('depth'), [None])[0] if isinstance(settings, dict) else None
    places = [plugin.get('position') for plugin in plugins]
    twice = next((place for place in places if places.count(place) > 1), None)
    if getattr(block, 'expansion', None) == 1:
        why = f'{model["type"]} puts none into the basic blocks of a depth of {backbone["depth"]}'
        what = 'does'
    elif twice and model.get('decode_head'):
        why = f'of several at {twice}, {model["type"]} runs only the last'
        what = 'runs all, in this order'
    else:
        return
    from mmattn.models.with_plugins import plugged_type

    remedy = plugged_type(network)
    raise UsageError(
        f'config key model.backbone.plugins: {why}.'
        + (f" Write type='{remedy}', which {what}." if remedy else '')
    )


def dataset_leaves(cfg: dict) -> Iterator[dict]:
    """The data sets inside wrappers such as ConcatDataset and RepeatDataset."""
    inner = cfg.get('datasets') or ([cfg['dataset']] if 'dataset' in cfg else None)
    if inner is None:
        yield cfg
    else:
        for part in inner:
            yield from dataset_leaves(part)


def replace_type(cfg: ConfigDict, old: str, new: str) -> int:
    """Set `type` to `new` in every dict below `cfg` where it is `old`; returns how many."""
    count = 0
    values = cfg.values() if isinstance(cfg, dict) else cfg
    for value in list(values):
        if isinstance(value, dict | list | tuple):
            count += replace_type(value, old, new)
    if isinstance(cfg, dict) and cfg.get('type') == old:
        cfg['type'] = new
        count += 1
    return count
