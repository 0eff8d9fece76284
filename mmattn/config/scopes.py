"""Scopes and registered types: what a config, or a checkpoint's recorded attention, may name."""

import contextlib
import io
import re
from importlib import import_module
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmattn.errors import UsageError

from .type_names import REGISTRIES
from .unused_keys import FUNCTIONS, UNREGISTERED, find_class

DATA_FORMATS = ('.json', '.yaml', '.yml')  # configs that are data; those in Python are code


SCOPES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmattn')


_EVALUATING = ('RFSearchHook', 'CameraMotionCompensation')  # call eval on what they are given


def find_unregistered(value, scope: str, where: str = '') -> str | None:
    """The first `type` below `value` that is no registered name, or scope of another, in words."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        place = f'{where}[{key}]' if isinstance(key, int) else f'{where}.{key}'.lstrip('.')
        if key == 'type' and not _is_known(item, where, scope):
            return f'{place} is {item!r}, which is not registered'
        if key == '_scope_' and item not in SCOPES:
            return f'{place} is {item!r}, which is no scope'
        if isinstance(item, dict | list | tuple) and (
            found := find_unregistered(item, scope, place)
        ):
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
    if '.' in name and name.split('.')[0] not in SCOPES:
        return False  # mmengine would import its module
    found = find_class(name, scope)
    nodes = [node for registry in REGISTRIES for node in (registry, *registry.children.values())]
    return any(found is known for node in nodes for known in node.module_dict.values())


def use_scope(cfg: Config) -> str:
    """Put the registries of a config's scope in place; returns the scope."""
    scope = cfg.get('default_scope', 'mmengine')
    if scope not in SCOPES and Path(str(cfg.filename)).suffix in DATA_FORMATS:
        raise UsageError(
            f'config key default_scope={scope!r}: allowed in a config of data are '
            f'{", ".join(SCOPES)}.'
        )
    init_default_scope(scope)
    for name in scope, 'mmdet', 'mmseg':  # our metrics need both; they print about what they miss
        with contextlib.suppress(ImportError), contextlib.redirect_stdout(io.StringIO()):
            import_module(f'{name}.datasets')
    return scope
