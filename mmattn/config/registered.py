"""Registered classes: looking one up as a config of a scope would, and suggesting names."""

import contextlib
import inspect
from collections.abc import Iterator
from importlib import import_module

from mmengine.registry import Registry

from mmattn.text import nearest

from .type_names import REGISTRIES


def find_class(name: str, scope: str) -> type | None:
    """The class or function that a config of a scope finds by a name; None if there is none.

    A name with the path of a module is imported only if it names no registry.
    """
    package, _, rest = name.partition('.')
    if rest and not any(package in registry.children for registry in REGISTRIES):
        with contextlib.suppress(ImportError):
            import_module(f'{package}.registry')
    for registry in REGISTRIES:
        node = registry.children.get(scope, registry)
        if not rest or package == node.scope:
            cls = _lookup(node, rest or name, parents=not rest)
        elif package in registry.children:
            cls = _lookup(registry.children[package], rest, parents=False)
        else:
            cls = _lookup(registry, rest, parents=False) if package == registry.scope else None
        if cls is not None:
            return cls
    is_scope = any(package in registry.children for registry in REGISTRIES)
    return REGISTRIES[0].get(name) if rest and not is_scope else None  # the path of a class


def _lookup(node: Registry | None, name: str, parents: bool) -> type | None:
    """The entry of a registry, or of one of its parents; imports nothing by the name."""
    while node is not None:
        if name in _entries(node):
            return node.module_dict[name]
        node = node.parent if parents else None
    return None


def suggest_type(name: str, scope: str) -> str:
    """A hint for the user: what an unknown type may have been meant to be."""
    package = name.partition('.')[0]
    nodes = [node for registry in REGISTRIES for node in registry.children.values()]
    if '.' in name and package not in {node.scope for node in nodes}:
        return f' Is {package} installed, and imported by custom_imports?'
    elsewhere = next((f'{node.scope}.{name}' for node in nodes if name in _entries(node)), None)
    return f' Did you mean {elsewhere}?' if elsewhere else nearest(name, _all_names(scope))


def _entries(node: Registry) -> dict:
    node.import_from_location()
    return node.module_dict


def _all_names(scope: str) -> set[str]:
    """All registered names as a config of a scope would write them."""
    names = set()
    for registry in REGISTRIES:
        children = registry.children
        names |= set(registry.module_dict)
        if scope in children:
            names |= set(children[scope].module_dict)
        if 'mmattn' in children:
            names |= {f'mmattn.{name}' for name in children['mmattn'].module_dict}
    return names


def nested_classes(value, scope: str) -> Iterator[type]:
    """Classes of all dicts with a `type` in a part of a config."""
    if isinstance(value, dict):
        cls = find_class(value['type'], scope) if isinstance(value.get('type'), str) else None
        if inspect.isclass(cls):
            yield cls
        value = value.values()
    if not isinstance(value, str):
        for item in value if hasattr(value, '__iter__') else ():
            yield from nested_classes(item, scope)
