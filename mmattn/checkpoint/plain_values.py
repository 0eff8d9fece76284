"""What a checkpoint may hold: tensors and plain values, which its reader takes.

A reader that executes nothing (`weights_only=True`) knows few types. What has a plain form is
written in that form; the rest is refused where it stands, before a file is written.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Set, ValuesView
from enum import Enum
from pathlib import PurePath
from reprlib import repr as show

import numpy as np
import torch
from torch import Tensor

from mmattn.errors import UsageError

_SAME = (bool, int, float, complex, str, bytes, type(None), bytearray)
_SAME += (torch.Size, torch.device, torch.dtype)
_DICTS = (dict, OrderedDict, Counter)
_LISTS = (list, deque, range, ValuesView)


class NotPlain(UsageError):
    """A value that no checkpoint can hold.

    Attributes:
        where: its dotted key.
    """

    def __init__(self, value, where: str) -> None:
        self.where = where
        kind = f'{type(value).__module__}.{type(value).__qualname__}'.removeprefix('builtins.')
        super().__init__(
            f'{where} of the checkpoint is {show(value)}: a {kind} cannot be saved, as reading it '
            'would execute code. Put numbers, text, tensors, lists and dicts of them there.'
        )


def plain(value, where: str = ''):
    """The same structure of tensors and plain values; the very object if that is plain already.

    Arrays become lists, numbers of NumPy those of Python, paths text, members of an `Enum` their
    values; of a class derived from a dict, list or tuple remains the dict, list or tuple.

    Args:
        value: of any depth.
        where: its dotted key, for the message.

    Raises:
        NotPlain: it has no plain form.
    """
    if type(value) in _SAME or isinstance(value, Tensor):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return _of_numpy(value, where)
    if isinstance(value, Enum):
        return plain(value.value, where)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return _of_mapping(value, where)
    if isinstance(value, Set):  # views of a dict's keys, too
        items = [plain(item, where) for item in value]
        if type(value) is set and all(type(item) in _SAME for item in value):
            return value
        return set(items) if isinstance(value, set | frozenset) else items
    if isinstance(value, (tuple, *_LISTS)):
        items = [plain(item, f'{where}.{i}') for i, item in enumerate(value)]
        kept = type(value) in (list, tuple) and all(a is b for a, b in zip(value, items))
        return value if kept else tuple(items) if isinstance(value, tuple) else items
    for kind in int, float, str, bytes:
        if isinstance(value, kind):
            return kind(value) if kind is not str else str.__str__(value)
    raise NotPlain(value, where)


def plain_part(values: Mapping, where: str, left: list[str] | None = None) -> dict:
    """Those values of a dict that have a plain form; appends the keys of the others to `left`."""
    found = {}
    for key, value in values.items():
        try:
            found[key] = plain(value, f'{where}.{key}')
        except NotPlain as error:
            if left is not None:
                left.append(error.where)
    return found


def without_tensors(value):
    """Tensors of a plain structure as numbers and lists, which also a file of JSON holds."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: without_tensors(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return type(value)(without_tensors(item) for item in value)
    return value


def _of_numpy(value: np.generic | np.ndarray, where: str):
    if isinstance(value, np.ndarray) and value.dtype == object:
        return plain(value.tolist(), where)
    if value.dtype.kind not in 'biufcSU':
        raise NotPlain(value, where)  # dates, records
    return value.tolist() if value.dtype.itemsize <= 8 else _wide(value)


def _wide(value: np.generic | np.ndarray):
    """Text, complex numbers, and floats of more digits than Python has."""
    found = value.tolist()
    if value.dtype.kind == 'f':
        return np.asarray(value, np.float64).tolist()
    if value.dtype.kind == 'c':
        return np.asarray(value, np.complex128).tolist()
    return found


def _of_mapping(value: Mapping, where: str) -> dict:
    items = {
        plain(k, where): plain(v, f'{where}.{k}' if where else str(k)) for k, v in value.items()
    }
    same = all(a is b for a, b in zip(value, items)) and all(items[k] is value[k] for k in items)
    if type(value) in _DICTS and same and len(items) == len(value):
        return value
    if type(value) is not OrderedDict:
        return items
    found = OrderedDict(items)
    found.__dict__.update(value.__dict__)  # such as the versions of a state dict
    return found


def tensors(value, name: str = '') -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a structure with where it stands."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f'{name}.{key}' if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from tensors(item, f'{name}.{index}')
