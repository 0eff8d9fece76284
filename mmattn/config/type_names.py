"""Types that are classes or functions, as configs with `read_base()` have them, become names.

The name is the one by which the scope of the config finds the class: `ResNet`, `mmseg.ResNet`,
`torch.nn.ReLU`. So every tool reads one kind of config, and what a run writes down can be read.
"""

import contextlib
import types
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import Registry, root

from mmattn.errors import UsageError

REGISTRIES = [value for value in vars(root).values() if isinstance(value, Registry)]
_NAMED = ('type', 'constructor', 'runner_type')  # keys whose values are looked up by name
_LAZY = (LazyObject, LazyAttr)


def name_types(cfg: Config) -> None:
    """Put names in place of classes, and drop what the file imported.

    Raises:
        UsageError: a class that no name leads to.
        ImportError: what a file imports is not there.
    """
    content = cfg._cfg_dict
    imported = cfg.__dict__.get('_imported_names') or set()
    for name, value in list(dict.items(content)):
        if name in imported or isinstance(value, types.ModuleType | types.FunctionType):
            dict.pop(content, name)
    object.__setattr__(cfg, '_imported_names', set())
    scope = content.get('default_scope') or 'mmengine'
    _name_types(content, scope if isinstance(scope, str) else 'mmengine', '')


def _name_types(value: Any, scope: str, where: str) -> None:
    if isinstance(value, dict):
        scope = dict.get(value, '_scope_') or scope
        for key, item in list(dict.items(value)):
            place = f'{where}.{key}' if where else str(key)
            if key in _NAMED and isinstance(item, (*_LAZY, type, types.FunctionType)):
                value[key] = type_name(item.build() if isinstance(item, _LAZY) else item, scope)
                if value[key] is None:
                    raise UsageError(
                        f'config key {place} is {item!r}: no name leads to it, so no file can '
                        'hold it. Define it at the top of a module that can be imported.'
                    )
            else:
                _name_types(item, scope, place)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _name_types(item, scope, f'{where}[{index}]')


def type_name(target: Any, scope: str) -> str | None:
    """The shortest name by which a config of a scope finds a class or function; None without any.

    >>> type_name(mmdet.models.ResNet, 'mmdet')
    'ResNet'
    """
    with contextlib.suppress(ImportError):
        import_module(f'{scope}.registry')
    own = getattr(target, '__name__', '')
    for node, registry, names in _registrations(target):
        name = own if own in names else names[0]
        reader = registry.children.get(scope, registry)
        for found in name, f'{node.scope}.{name}':
            if reader.get(found) is target:
                return found
    path = f'{getattr(target, "__module__", "")}.{own}'
    with contextlib.suppress(ImportError, AttributeError, ValueError):
        module, _, name = path.rpartition('.')
        if getattr(import_module(module), name) is target:
            return path
    return None


def _registrations(target: Any) -> Iterator[tuple[Registry, Registry, list[str]]]:
    """Registry, root registry and names under which something is registered."""
    for registry in REGISTRIES:
        for node in (registry, *registry.children.values()):
            names = [name for name, known in node.module_dict.items() if known is target]
            if names:
                yield node, registry, names


def unnamed(value: Any, where: str = '') -> Iterator[str]:
    """Keys of classes and functions that are no types: a file can hold only their names."""
    if isinstance(value, dict):
        for key, item in dict.items(value):
            yield from unnamed(item, f'{where}.{key}' if where else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from unnamed(item, f'{where}[{index}]')
    elif isinstance(value, (*_LAZY, type, types.FunctionType, types.BuiltinFunctionType)):
        yield where
