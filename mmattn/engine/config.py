"""Reading a config and refusing what nobody would read or what cannot fit, before anything runs."""

import argparse
import ast
import contextlib
import inspect
import io
import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from importlib import import_module
from pathlib import Path

import yaml
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.fileio import load
from mmengine.registry import init_default_scope

from mmattn.errors import CheckpointError, UsageError
from mmattn.registry import MODELS

from . import safe_files  # noqa: F401, nothing below reads a file before it is safe
from .config_keys import (
    FUNCTIONS,
    REGISTRIES,
    RUNNER_KEYS,
    UNREGISTERED,
    check_keys,
    find_class,
    nearest,
)

_DATA = ('.json', '.yaml', '.yml')  # configs that are data; those in Python are code
_SCOPES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmattn')
_EVALUATING = ('RFSearchHook', 'CameraMotionCompensation')  # call eval on what they are given
_HERE = Path(__file__).parents[1]
_HOMES = (_HERE.parent / 'configs', _HERE / '.mim' / 'configs')  # of mmattn's own configs


class _Config(Config):
    """A config whose text is formatted once: mmengine asks for it eleven times in a run."""

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
        cfg = Config.fromfile(path, code, code, code)
        object.__setattr__(cfg, '__class__', _Config)  # with all that fromfile found
    except UsageError:
        raise
    except yaml.YAMLError as error:
        raise UsageError(f'config {path} cannot be read: {_yaml_problem(error)}.') from error
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
    options = {key: _as_before(cfg, key, value) for key, value in options.items()}
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError) as error:
        raise UsageError(f'--cfg-options does not fit {path}: {error.args[0]}') from error
    return cfg


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


def _as_before(cfg: Config, key: str, value):
    """A list given on the command line becomes a tuple where the config has one: classes insist."""
    old = cfg
    for part in key.split('.'):
        try:
            old = old[int(part)] if isinstance(old, list | tuple) else old[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return value
    return tuple(value) if isinstance(old, tuple) and isinstance(value, list) else value


def parse_options(options: dict | Iterable[str] | None) -> dict:
    """What `--cfg-options` gave, `key=value` strings, as mmengine's own `DictAction` reads them.

    Raises:
        UsageError: not of the form key=value.
    """
    if not options or isinstance(options, dict):
        return options or {}
    for pair in options:
        if not pair.partition('=')[1]:
            raise UsageError(f'--cfg-options {pair}: write key=value.')
    reader = argparse.ArgumentParser()
    reader.add_argument('--options', nargs='+', action=DictAction)
    try:
        return reader.parse_args(['--options', *options]).options
    except (AssertionError, RecursionError) as error:  # of unbalanced or other brackets
        raise UsageError(
            f'--cfg-options {" ".join(options)}: values are numbers, words, [a,b] and (a,b). Write '
            'what is more than that in a config file.'
        ) from error


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
    from mmattn.models.plugged import Plugged

    _backbone(cfg).update(cfg.attention['backbone'])
    plugins = cfg.attention['plugins']
    if not plugins:
        return
    kind = cfg.model.type.split('.')[-1]
    found = MODELS.get(kind)
    if not (inspect.isclass(found) and issubclass(found, Plugged)):
        raise UsageError(
            f'--attention: {cfg.model.type} is no detector of mmdet and no segmentor of mmseg, so '
            'it takes no plugins. Derive its class from mmattn.models.plugged.Plugged, too.'
        )
    cfg.model.type = f'mmattn.{kind}'
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
    unread = set(cfg.keys()) - RUNNER_KEYS - ({'custom_imports'} - set(options))
    variables = _variables(Path(cfg.filename)) if cfg.filename else set()
    for name in sorted(unread - variables | {o for o in options if o in unread}):
        hint = nearest(name, RUNNER_KEYS)
        if name in variables:
            hint = ' It is a variable of the file, used up when that was read; set what uses it.'
        raise UsageError(f'config key {name} is read by nobody.{hint}')
    for name in unread:  # the config that a run writes down can be read again
        cfg.pop(name)
    scope = _use_scope(cfg)
    if Path(str(cfg.filename)).suffix in _DATA:
        wrong = _unregistered(cfg.to_dict(), scope)
        if wrong:
            raise UsageError(f'config key {wrong}; a config of data names nothing else.')
    if 'type' not in (cfg.get('model') or {}):
        raise UsageError(f'config {cfg.filename} has no model with a type.')
    check_keys(cfg, scope)
    _check_order(cfg.model)


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


def _check_order(model: dict) -> None:
    """MMSegmentation's ResNet runs only the last of several plugins at one place."""
    if model['type'].startswith('mmattn.') or not model.get('decode_head'):
        return
    places = [plugin.get('position') for plugin in model.get('backbone', {}).get('plugins') or []]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice:
        raise UsageError(
            f'config key model.backbone.plugins: of several at {twice}, {model["type"]} runs '
            "only the last. Write type='mmattn.EncoderDecoder', which runs all, in this order."
        )


def dataset_leaves(cfg: dict) -> Iterator[dict]:
    """The data sets inside wrappers such as ConcatDataset and RepeatDataset."""
    inner = cfg.get('datasets') or ([cfg['dataset']] if 'dataset' in cfg else None)
    if inner is None:
        yield cfg
    else:
        for part in inner:
            yield from dataset_leaves(part)


def _variables(path: Path) -> set[str]:
    """Top-level names of a config file and its parents that the files themselves read."""
    if path.suffix in _DATA:
        found = [_variables(path.parent / parent) for parent in _parents(load(path))]
        return set().union(*found)
    tree = ast.parse(path.read_text(encoding='utf-8'))
    names = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    }
    names |= {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == '_base_'
    }
    assigned = {
        t.id: n.value
        for n in tree.body
        if isinstance(n, ast.Assign)
        for t in n.targets
        if isinstance(t, ast.Name)
    }
    # a variable that the leaf sets again is not read by the parent that used it
    shadowed = set(assigned) - names - {'_base_'}
    parents = ast.literal_eval(assigned['_base_']) if '_base_' in assigned else []
    for parent in [parents] if isinstance(parents, str) else parents:
        names |= _variables(path.parent / parent) - shadowed
    return names


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
