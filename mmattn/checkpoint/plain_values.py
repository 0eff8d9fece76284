"""Plain values: the types that a checkpoint may hold in addition to tensors.

A reader that executes nothing (`weights_only=True`) knows few types. Values that have a plain form
are converted to it; others are refused, with their key, before a file is written.
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

_UNCHANGED = (bool, int, float, complex, str, bytes, type(None), bytearray)
_UNCHANGED += (torch.Size, torch.device, torch.dtype)
_DICTS = (dict, OrderedDict, Counter)
_LISTS = (list, deque, range, ValuesView)


class NotPlain(UsageError):
    """A value that no checkpoint can hold.

    Attributes:
        key: dotted key of the value.
    """

    def __init__(self, value, key: str) -> None:
        self.key = key
        kind = f'{type(value).__module__}.{type(value).__qualname__}'.removeprefix('builtins.')
        super().__init__(
            f'{key} of the checkpoint is {show(value)}: a {kind} cannot be saved, as reading it '
            'would execute code. Put numbers, text, tensors, lists and dicts of them there.'
        )


def to_plain(value, key: str = ''):
    """The same structure of tensors and plain values; the same object if it is plain already.

    Arrays become lists, numbers of NumPy those of Python, paths text, members of an `Enum` their
    values; of a class derived from a dict, list or tuple remains the dict, list or tuple.

    Args:
        value: a value or a structure of any depth.
        key: dotted key of the value, for messages.

    Raises:
        NotPlain: a value has no plain form.
    """
    if type(value) in _UNCHANGED or isinstance(value, Tensor):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return _of_numpy(value, key)
    if isinstance(value, Enum):
        return to_plain(value.value, key)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return _of_mapping(value, key)
    if isinstance(value, Set):  # views of a dict's keys, too
        items = [to_plain(item, key) for item in value]
        if type(value) is set and all(type(item) in _UNCHANGED for item in value):
            return value
        return set(items) if isinstance(value, set | frozenset) else items
    if isinstance(value, (tuple, *_LISTS)):
        items = [to_plain(item, f'{key}.{i}') for i, item in enumerate(value)]
        same = type(value) in (list, tuple) and all(a is b for a, b in zip(value, items))
        return value if same else tuple(items) if isinstance(value, tuple) else items
    for kind in int, float, str, bytes:
        if isinstance(value, kind):
            return kind(value) if kind is not str else str.__str__(value)
    raise NotPlain(value, key)


def plain_items(values: Mapping, prefix: str, left_out: list[str] | None = None) -> dict:
    """The items of a dict that have a plain form; appends the keys of the others to `left_out`."""
    items = {}
    for key, value in values.items():
        try:
            items[key] = to_plain(value, f'{prefix}.{key}')
        except NotPlain as error:
            if left_out is not None:
                left_out.append(error.key)
    return items


def tensors_to_lists(value):
    """Replace the tensors of a plain structure by numbers and lists, for JSON."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: tensors_to_lists(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return type(value)(tensors_to_lists(item) for item in value)
    return value


def _of_numpy(value: np.generic | np.ndarray, key: str):
    if isinstance(value, np.ndarray) and value.dtype == object:
        return to_plain(value.tolist(), key)
    if value.dtype.kind not in 'biufcSU':
        raise NotPlain(value, key)  # dates, records
    return value.tolist() if value.dtype.itemsize <= 8 else _of_wide_numpy(value)


def _of_wide_numpy(value: np.generic | np.ndarray):
    """Convert text, complex numbers, and floats of more digits than Python has."""
    if value.dtype.kind == 'f':
        return np.asarray(value, np.float64).tolist()
    if value.dtype.kind == 'c':
        return np.asarray(value, np.complex128).tolist()
    return value.tolist()


def _of_mapping(value: Mapping, key: str) -> dict:
    items = {
        to_plain(k, key): to_plain(v, f'{key}.{k}' if key else str(k)) for k, v in value.items()
    }
    same = all(a is b for a, b in zip(value, items)) and all(items[k] is value[k] for k in items)
    if type(value) in _DICTS and same and len(items) == len(value):
        return value
    if type(value) is not OrderedDict:
        return items
    ordered = OrderedDict(items)
    ordered.__dict__.update(value.__dict__)  # such as the versions of a state dict
    return ordered


def iter_tensors(value, name: str = '') -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a structure, with its dotted key."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from iter_tensors(item, f'{name}.{key}' if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from iter_tensors(item, f'{name}.{index}')
