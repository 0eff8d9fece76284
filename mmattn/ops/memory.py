"""Check before allocating: the out-of-memory killer leaves no message."""

import contextlib
from pathlib import Path

import torch
from torch import Tensor

from mmattn.torch_compat import is_compiling

_CHECKED_FROM = 1 << 30  # bytes; for less, the check costs more than it is worth
_CGROUP = Path('/sys/fs/cgroup')


def require(nbytes: int, like: Tensor, what: str) -> None:
    """Raise if more bytes are needed on the device of a tensor than are free there.

    Args:
        nbytes: bytes to be allocated.
        like: a tensor on the device.
        what: name of the operation, for the message.

    Raises:
        MemoryError: the message has the bytes needed, the bytes free and a remedy.
    """
    if is_compiling() or nbytes < _CHECKED_FROM:
        return
    free = free_memory(like.device)
    if free is not None and nbytes > free:
        raise MemoryError(
            f'{what} needs {nbytes / 1e9:.1f} GB in addition to its inputs, '
            f'{free / 1e9:.1f} GB are free on {like.device}: allowed are fewer images at once, or '
            "smaller maps (windows, as with mode='slide', or a larger stride)"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated; None where that is unknown."""
    if device.type == 'cuda':
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != 'cpu':
        return None
    limits = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path('/proc/meminfo').read_text(encoding='ascii').splitlines()
        line = next((line for line in lines if line.startswith('MemAvailable')), '')
        limits.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # in a container; 'max' where there is no limit
        limit = int((_CGROUP / 'memory.max').read_text(encoding='ascii'))
        limits.append(limit - int((_CGROUP / 'memory.current').read_text(encoding='ascii')))
    return min(limits, default=None)
