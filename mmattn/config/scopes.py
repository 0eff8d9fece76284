"""Scopes and registered types that a config of data, or a checkpoint, may name."""

import contextlib
import io
import re
from importlib import import_module
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmattn.errors import UsageError

from .registered import find_class
from .type_names import REGISTRIES
from .unused_keys import FUNCTIONS, UNREGISTERED

DATA_FORMATS = ('.json', '.yaml', '.yml')  # configs that are data; those in Python are code
SCOPES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmattn')
_CALL_EVAL = ('RFSearchHook', 'CameraMotionCompensation')  # classes that evaluate their arguments


def find_unregistered(value, scope: str, where: str = '') -> str | None:
    """The first nested `type` or `_scope_` that is not registered, as part of a sentence; or None.

    Args:
        value: dict or list of a config.
        scope: default scope of the config.
        where: dotted key of `value`.
    """
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        path = f'{where}[{key}]' if isinstance(key, int) else f'{where}.{key}'.lstrip('.')
        if key == 'type' and not _is_known(item, where, scope):
            return f'{path} is {item!r}, which is not registered'
        if key == '_scope_' and item not in SCOPES:
            return f'{path} is {item!r}, which is no scope'
        if isinstance(item, dict | list | tuple) and (
            problem := find_unregistered(item, scope, path)
        ):
            return problem
    return None


def _is_known(name, where: str, scope: str) -> bool:
    """Whether a type is registered, or an allowed function; never imports it to find out."""
    if where.endswith(UNREGISTERED):  # mmcv evaluates the type of nms
        return name in FUNCTIONS
    if not isinstance(name, str) or not re.fullmatch(r'\w+(\.\w+)?', name):
        return False
    if name.split('.')[-1] in _CALL_EVAL:
        return False
    if '.' in name and name.split('.')[0] not in SCOPES:
        return False  # mmengine would import its module
    cls = find_class(name, scope)
    nodes = [node for registry in REGISTRIES for node in (registry, *registry.children.values())]
    return any(cls is registered for node in nodes for registered in node.module_dict.values())


def use_scope(cfg: Config) -> str:
    """Make the scope of a config mmengine's default and fill its registries; returns the scope."""
    scope = cfg.get('default_scope', 'mmengine')
    if scope not in SCOPES and Path(str(cfg.filename)).suffix in DATA_FORMATS:
        raise UsageError(
            f'config key default_scope={scope!r}: allowed in a config of data are '
            f'{", ".join(SCOPES)}.'
        )
    init_default_scope(scope)
    # our metrics need both packages, which print a line for each optional one that is missing
    for name in scope, 'mmdet', 'mmseg':
        with contextlib.suppress(ImportError), contextlib.redirect_stdout(io.StringIO()):
            import_module(f'{name}.datasets')
    return scope
