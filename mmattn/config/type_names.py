"""Names in place of the classes and functions that configs with `read_base()` have as types.

The name is the one by which the scope of the config finds the class: `ResNet`, `mmseg.ResNet`,
`torch.nn.ReLU`. So every tool gets one kind of config, and the config that a run dumps can be read.
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
_TYPE_KEYS = ('type', 'constructor', 'runner_type')  # keys whose values are looked up by name
_LAZY = (LazyObject, LazyAttr)


def name_types(cfg: Config) -> None:
    """Replace classes by their names, and remove what the file imported.

    Raises:
        UsageError: a class that cannot be found by a name.
        ImportError: an import of the file fails.
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
            path = f'{where}.{key}' if where else str(key)
            if key in _TYPE_KEYS and isinstance(item, (*_LAZY, type, types.FunctionType)):
                value[key] = type_name(item.build() if isinstance(item, _LAZY) else item, scope)
                if value[key] is None:
                    raise UsageError(
                        f'config key {path} is {item!r}, which cannot be found by a name, so no '
                        'file can hold it. Define it at the top of a module that can be imported.'
                    )
            else:
                _name_types(item, scope, path)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _name_types(item, scope, f'{where}[{index}]')


def type_name(target: Any, scope: str) -> str | None:
    """The shortest name by which a config of a scope finds a class or function; None if none does.

    >>> type_name(mmdet.models.ResNet, 'mmdet')
    'ResNet'
    """
    with contextlib.suppress(ImportError):
        import_module(f'{scope}.registry')
    class_name = getattr(target, '__name__', '')
    for node, registry, names in _registrations(target):
        name = class_name if class_name in names else names[0]
        local = registry.children.get(scope, registry)
        for candidate in name, f'{node.scope}.{name}':
            if local.get(candidate) is target:
                return candidate
    path = f'{getattr(target, "__module__", "")}.{class_name}'
    with contextlib.suppress(ImportError, AttributeError, ValueError):
        module, _, name = path.rpartition('.')
        if getattr(import_module(module), name) is target:
            return path
    return None


def _registrations(target: Any) -> Iterator[tuple[Registry, Registry, list[str]]]:
    """Each registry that has a class or function, with its root registry and the names there."""
    for registry in REGISTRIES:
        for node in (registry, *registry.children.values()):
            names = [name for name, value in node.module_dict.items() if value is target]
            if names:
                yield node, registry, names


def unnamed(value: Any, where: str = '') -> Iterator[str]:
    """Dotted keys of classes and functions that are no types: a file can hold only their names."""
    if isinstance(value, dict):
        for key, item in dict.items(value):
            yield from unnamed(item, f'{where}.{key}' if where else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from unnamed(item, f'{where}[{index}]')
    elif isinstance(value, (*_LAZY, type, types.FunctionType, types.BuiltinFunctionType)):
        yield where
