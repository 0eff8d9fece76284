"""Options of a command as one object, which may also be given field by field."""

from dataclasses import fields, replace
from typing import TypeVar

from mmattn.text import nearest

T = TypeVar('T')


def complete(options: T, changes: dict) -> T:
    """Replace fields of an options object.

    Args:
        options: an instance of a frozen dataclass.
        changes: field names and their values.

    Raises:
        TypeError: `options` is not such an object, or it has no field of that name; names the
            nearest.
    """
    kind = type(options).__name__
    if not hasattr(options, '__dataclass_fields__'):
        raise TypeError(
            f'options is a {kind}, not an options object. Changes to the config are cfg_options.'
        )
    names = [field.name for field in fields(options)]
    for name in changes:
        if name not in names:
            raise TypeError(f'{kind} has no field {name!r}.{nearest(name, names)}')
    return replace(options, **changes)
