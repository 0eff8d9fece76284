"""Checking a config before anything runs: reject unused keys and inconsistent settings."""

import inspect
from collections.abc import Iterable
from pathlib import Path

from mmengine.config import Config

from mmattn.errors import UsageError
from mmattn.log import warn
from mmattn.models.with_plugins import type_with_plugins
from mmattn.text import nearest, some

from .registered import find_class
from .runner_keys import RUNNER_KEYS, check_runner_keys
from .scopes import DATA_FORMATS, find_unregistered, use_scope
from .source_files import ConfigFile, display_path
from .type_names import unnamed
from .unused_keys import check_keys

_MAX_KEYS = 6  # in one message
# class of MMSegmentation -> argument, values that fail in the first step, reason and remedy
_BROKEN = {
    'DNLHead': (
        'mode',
        ('gaussian', 'concatenation'),
        "it overwrites maps that backward needs. Use 'embedded_gaussian' or 'dot_product'",
    ),
    'OCRHead': (
        'scale',
        range(2, 100),
        'queries that it pools do not get back their size. Use 1',
    ),
}


def check_config(cfg: Config, options: Iterable[str] = ()) -> None:
    """Reject unused keys and unregistered types; remove variables that only the files use.

    Keys that come with a file of an installed package, such as a recipe of mmdet, are reported and
    allowed.

    Args:
        cfg: config from `load_config`; changed.
        options: top-level names set by `--cfg-options`, which no file uses any more.

    Raises:
        UsageError: an unused key or an unknown type; with the nearest known name.
    """
    set_by_options, allowed = set(options), {}
    file: ConfigFile | None = cfg.__dict__.get('_file')
    unused = set(cfg.keys()) - RUNNER_KEYS - ({'custom_imports'} - set_by_options)
    variables = file.variables() if file else set()
    for name in sorted(unused - variables | (set_by_options & unused)):
        owner = file.package_file(name) if file and name not in set_by_options else None
        if not owner:
            raise UsageError(_unused_message(cfg, file, name, name in variables))
        allowed[name] = owner
    for name in unused:  # so that the config that a run dumps can be loaded again
        cfg.pop(name)
    check_runner_keys(cfg)
    scope = use_scope(cfg)
    if Path(str(cfg.filename)).suffix in DATA_FORMATS:
        problem = find_unregistered(cfg.to_dict(), scope)
        if problem:
            raise UsageError(
                f'config key {problem}; in JSON and YAML only registered types are allowed.'
            )
    if 'type' not in (cfg.get('model') or {}):
        raise UsageError(f'config {cfg.filename} has no model with a type.')
    known = set(cfg.get('unused_keys') or ())
    nested = check_keys(cfg, scope, lambda key: key in known or bool(file and file.file_with(key)))
    if nested:
        cfg.unused_keys = nested
        allowed |= {key: file.file_with(key) or file.path for key in nested} if file else {}
    _warn(cfg, allowed)
    _check_plugin_order(cfg.model, scope)
    _check_decode_heads(cfg.model, scope)


def _unused_message(cfg: Config, file: ConfigFile | None, name: str, is_variable: bool) -> str:
    """Error message for a top-level name that nothing in the config uses."""
    parent = file.parent_using(name) if file else None
    if not is_variable and not parent:
        return f'unknown config key {name}: nothing uses it.{nearest(name, RUNNER_KEYS)}'
    keys = [key for key in file.uses(name) if _has_key(cfg, key)]
    where = 'the file' if is_variable else display_path(parent)
    return (
        f'config key {name} has no effect: it is a variable of {where}, used up when that was '
        f'read. Set what uses it{": " if keys else ""}{some(keys, _MAX_KEYS)}.'
    )


def _has_key(cfg: Config, key: str) -> bool:
    """Whether a config has a value at a dotted key."""
    value = cfg if key.split('.')[0] in RUNNER_KEYS else {}
    for part in key.split('.'):
        try:
            value = value[int(part)] if isinstance(value, list | tuple) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return False
    return True


def _warn(cfg: Config, allowed: dict[str, Path]) -> None:
    """Report unused keys that come with a package, and values that a dumped config cannot hold."""
    for path in dict.fromkeys(allowed.values()):
        keys = [key for key, owner in allowed.items() if owner == path]
        noun, pronoun = ('keys', 'them') if len(keys) > 1 else ('key', 'it')
        names = some(keys, _MAX_KEYS)
        warn(f'config {noun} {names} of {display_path(path)}: nothing uses {pronoun}')
    for key in unnamed(cfg._cfg_dict):
        warn(
            f'config key {key} is a class or function: the config that a run dumps has only its '
            'name there, so use the file itself to resume or test'
        )


def _check_plugin_order(model: dict, scope: str) -> None:
    """Reject `backbone.plugins` that a stock network would drop or run in another order."""
    backbone = model.get('backbone') or {}
    plugins = backbone.get('plugins')
    scope = model.get('_scope_') or scope
    network = find_class(model['type'], scope)
    if not plugins or not inspect.isclass(network) or getattr(network, 'trains_plugins', False):
        return
    settings = getattr(find_class(backbone['type'], scope), 'arch_settings', {})
    block = settings.get(backbone.get('depth'), [None])[0] if isinstance(settings, dict) else None
    positions = [plugin.get('position') for plugin in plugins]
    repeated = next((name for name in positions if positions.count(name) > 1), None)
    if getattr(block, 'expansion', None) == 1:
        depth = backbone['depth']
        reason = f'{model["type"]} puts none into the basic blocks of a depth of {depth}'
        ability = 'does'
    elif repeated and model.get('decode_head'):
        reason = f'of several at {repeated}, {model["type"]} runs only the last'
        ability = 'runs all, in this order'
    else:
        return
    name = type_with_plugins(network)
    remedy = f" Write type='{name}', which {ability}." if name else ''
    raise UsageError(f'config key model.backbone.plugins: {reason}.{remedy}')


def _check_decode_heads(model: dict, scope: str) -> None:
    """Reject options of MMSegmentation's heads that no training step gets through."""
    heads = model.get('decode_head') or []
    scope = model.get('_scope_') or scope
    for index, head in [('', heads)] if isinstance(heads, dict) else enumerate(heads):
        network = find_class(head.get('type', ''), scope)
        if not getattr(network, '__module__', '').startswith('mmseg.'):
            continue
        argument, values, reason = _BROKEN.get(network.__name__, ('', (), ''))
        if head.get(argument) in values:
            path = '.'.join(filter(None, ['model.decode_head', str(index), argument]))
            raise UsageError(
                f'config key {path}: {network.__name__} of MMSegmentation cannot train with '
                f'{head[argument]!r}: {reason}.'
            )
