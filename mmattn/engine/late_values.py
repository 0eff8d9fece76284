"""Numbers on a device that are read one step late, so that the device never waits for the host."""

from typing import Any

import torch
from torch import Tensor

_READ_AT_ONCE = ('cpu',)  # types of devices whose numbers are there when an operation returns


def is_late(device: torch.device) -> bool:
    """Whether reading a number of a device at once would wait for all that is queued there."""
    return device.type not in _READ_AT_ONCE


class LateValues:
    """Holds numbers of a step until the next step is queued; then reading them waits for no more.

    On a GPU they are copied to the host when they are given, in the order of the device's work.
    """

    def __init__(self) -> None:
        self._pending: tuple[Any, Tensor, torch.cuda.Event | None] | None = None

    def exchange(self, key: Any, values: Tensor) -> tuple[Any, list[float]] | None:
        """Give the numbers of this step, and get those of the step before.

        Args:
            key: what comes back with the numbers, such as the step.
            values: (n) numbers.

        Returns:
            key and numbers of the last call; None at first.
        """
        before = self.take()
        values = values.detach()
        if values.is_cuda:
            copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            copy.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        else:
            copy, event = values.clone(), None
        self._pending = key, copy, event
        return before

    def take(self) -> tuple[Any, list[float]] | None:
        """Key and numbers of the last call of `exchange`, once; None without one."""
        if self._pending is None:
            return None
        (key, values, event), self._pending = self._pending, None
        if event is not None:
            event.synchronize()
        return key, values.numpy().tolist()
