"""Checking a config before anything runs: reject unused keys and inconsistent settings."""

import inspect
import logging
from collections.abc import Iterable
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from mmattn.errors import UsageError
from mmattn.text import nearest

from .runner_keys import RUNNER_KEYS, check_runner_keys
from .scopes import DATA_FORMATS, find_unregistered, use_scope
from .source_files import ConfigFile, listed, shown
from .type_names import unnamed
from .unused_keys import check_keys, find_class


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
    scope = use_scope(cfg)
    if Path(str(cfg.filename)).suffix in DATA_FORMATS:
        wrong = find_unregistered(cfg.to_dict(), scope)
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


def _check_order(model: dict, scope: str) -> None:
    """Networks of mmdet and mmseg do not put every plugin of a backbone where it is written."""
    backbone = model.get('backbone') or {}
    plugins = backbone.get('plugins')
    scope = model.get('_scope_') or scope
    network = find_class(model['type'], scope)
    if not plugins or not inspect.isclass(network) or getattr(network, 'trains_plugins', False):
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
    from mmattn.models.with_plugins import type_with_plugins

    remedy = type_with_plugins(network)
    raise UsageError(
        f'config key model.backbone.plugins: {why}.'
        + (f" Write type='{remedy}', which {what}." if remedy else '')
    )
