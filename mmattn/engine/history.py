"""Histories of logged numbers: an update takes the same time however long they are."""

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from torch import Tensor

from .late_values import is_late

_ROOM = 1024  # values at first
_MAX_LATER = 1000  # values that stay on a device


class GrowingHistory(HistoryBuffer):
    """As `HistoryBuffer`, whose arrays double when they are full; mmengine copies them each time.

    Counts that are all 1, as those of losses, take no memory.

    Args: as `HistoryBuffer`.
    """

    def __init__(self, *args, **kwargs) -> None:
        self._later: list[Tensor] = []
        super().__init__(*args, **kwargs)

    @property
    def _log_history(self) -> np.ndarray:
        self._read_later()
        return self._values[self._start : self._end]

    @_log_history.setter
    def _log_history(self, values: np.ndarray) -> None:
        self._values = _with_room(values)
        self._start, self._end = 0, len(values)
        self._may_widen = True

    @property
    def _count_history(self) -> np.ndarray:
        self._read_later()
        if self._counts.ndim == 0:
            return np.broadcast_to(self._counts, self._end - self._start)
        return self._counts[self._start : self._end]

    @_count_history.setter
    def _count_history(self, values: np.ndarray) -> None:
        is_one = bool(np.all(values == 1))
        self._counts = np.ones((), values.dtype) if is_one else _with_room(values)
        self._may_widen = True

    def update(self, log_val: int | float, count: int | float = 1) -> None:
        """Append a number.

        Args:
            log_val: the number.
            count: how many values it stands for.

        Raises:
            TypeError: they are no numbers.
        """
        if not isinstance(log_val, int | float) or not isinstance(count, int | float):
            value = count if isinstance(log_val, int | float) else log_val
            raise TypeError(f'history: {value!r} is a {type(value).__name__}, not a number')
        if self._later:
            self._read_later()
        if self._may_widen:
            self._widen(log_val, count)
        if self._end == len(self._values):
            history = self._log_history, self._count_history
            self._log_history, self._count_history = history
        if count != 1 and self._counts.ndim == 0:
            self._counts = np.full(len(self._values), self._counts)
        self._values[self._end] = log_val
        if self._counts.ndim:
            self._counts[self._end] = count
        self._end += 1
        if self._end - self._start > self.max_length:
            self._start += 1

    def _widen(self, log_val: int | float, count: int | float) -> None:
        """Let arrays of whole numbers take these."""
        for name, value in ('_values', log_val), ('_counts', count):
            room = self.__dict__[name]
            wider = np.result_type(room.dtype, np.asarray(value).dtype)
            if wider != room.dtype:
                self.__dict__[name] = room.astype(wider)
        self._may_widen = self._values.dtype.kind != 'f' or self._counts.dtype.kind != 'f'

    def update_later(self, value: Tensor) -> None:
        """Append the only number of a tensor, which is read once the history is asked for."""
        self._later.append(value.detach().reshape(()))
        if len(self._later) >= _MAX_LATER:
            self._read_later()

    def _read_later(self) -> None:
        if self._later:
            later, self._later = self._later, []
            for value in torch.stack([t.to(later[0]) for t in later]).tolist():
                self.update(value)


def _with_room(values: np.ndarray) -> np.ndarray:
    """An array that begins with these values."""
    room = np.empty(max(_ROOM, 2 * len(values)), values.dtype)
    room[: len(values)] = values
    return room


class Histories(OrderedDict):
    """Histories of a `MessageHub` by name, which grow."""

    def __setitem__(self, key: str, history: HistoryBuffer) -> None:
        if type(history) is HistoryBuffer:
            history = GrowingHistory(*history.data, history.max_length)
        super().__setitem__(key, history)


def log_number(hub: MessageHub, key: str, value: Any) -> None:
    """`hub.update_scalar`, which does not wait for a number on a GPU."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not is_late(value.device):
        hub.update_scalar(key, value)
        return
    if key not in hub.log_scalars:
        hub.log_scalars[key] = GrowingHistory()
    hub.log_scalars[key].update_later(value)
    hub._set_resumed_keys(key, True)
