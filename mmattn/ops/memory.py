"""Asking before allocating: a system that runs out of memory kills, and says nothing."""

import contextlib
from pathlib import Path

import torch
from torch import Tensor

_WORTH_ASKING = 1 << 30  # bytes; below, a look at what is free is not worth its time
_CGROUP = Path('/sys/fs/cgroup')


def require(nbytes: int, like: Tensor, what: str) -> None:
    """Raise if more bytes are needed on the device of a tensor than are free there.

    Raises:
        MemoryError: with what is needed, what is free and what to do.
    """
    if torch.compiler.is_compiling() or nbytes < _WORTH_ASKING:
        return
    free = free_memory(like.device)
    if free is not None and nbytes > free:
        raise MemoryError(
            f'{what} needs {nbytes / 1e9:.1f} GB beside its inputs, {free / 1e9:.1f} GB are free '
            f'on {like.device}: allowed are fewer images at once, or smaller maps (windows, as '
            "with mode='slide', or a larger stride)"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated; None where the system does not say."""
    if device.type == 'cuda':
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != 'cpu':
        return None
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path('/proc/meminfo').read_text(encoding='ascii').splitlines()
        line = next((line for line in lines if line.startswith('MemAvailable')), '')
        found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # of a container; 'max' where there is no limit
        limit = int((_CGROUP / 'memory.max').read_text(encoding='ascii'))
        found.append(limit - int((_CGROUP / 'memory.current').read_text(encoding='ascii')))
    return min(found, default=None)
