"""Block classes by the name that a config gives them."""

import difflib
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module

from torch import nn

from mmattn.registry import MODELS, ROOT, Registry

# Modules of optional packages that register a block when they are imported.
_REGISTERED_BY = {'DCN': 'mmcv.ops', 'DCNv2': 'mmcv.ops'}


def find_block(name: str, network: type | None = None) -> type[nn.Module] | None:
    """The class of a block: one of mmattn, or else what a config of the network finds by the name.

    Args:
        name: a registered name, with its scope or without.
        network: class of the network; its own registry and that of its package are searched next,
            then that of the default scope.
    """
    if name in _REGISTERED_BY:
        with suppress(ImportError):
            import_module(_REGISTERED_BY[name])
    with ROOT.switch_scope_and_registry(None) as current:
        registries = [MODELS, *_registries_of(network), current]
    matches = (registry.get(name) for registry in registries)
    return next((cls for cls in matches if cls is not None), None)


def _registries_of(network: type | None) -> Iterator[Registry]:
    if hasattr(network, 'stock_registry'):
        yield network.stock_registry
    for base in getattr(network, '__mro__', ()):
        package = base.__module__.partition('.')[0]
        if package in ROOT.children:
            yield ROOT.children[package]


def suggest(name: str) -> str:
    """A hint for a name that is not registered, ' Did you mean ...?'; '' without a near one."""
    known = {f'{r.scope}.{key}' for r in ROOT.children.values() for key in r.module_dict}
    known |= set(ROOT.module_dict)
    same = sorted(k for k in known if k.rpartition('.')[2] == name.rpartition('.')[2])
    near = same[:2] or difflib.get_close_matches(name, sorted(known), n=2, cutoff=0.5)
    return f' Did you mean {" or ".join(near)}?' if near else ''
