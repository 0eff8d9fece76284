"""Time and memory of calls on a CPU or a GPU."""

import contextlib
import ctypes
import gc
import os
import random
import time
from collections.abc import Callable, Iterable
from itertools import accumulate
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mmattn.errors import MmattnError, UsageError
from mmattn.torch_compat import event_start

CPU = torch.device('cpu')
_GPU_CALLS, _GPU_MS = 20, 20  # between two events, as one short call would be timed with its launch
DTYPES = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16, fp64=torch.float64)


class BaselineUnsupported(RuntimeError):
    """A baseline lacks a backward pass or the dtype, or needs more memory than is available."""


class ResultsDiffer(MmattnError):
    """A block and its baseline compute different results, so their times are not comparable."""


def find_device(name: str) -> torch.device:
    """The device 'cpu', 'cuda' or 'cuda:1', checked to exist.

    Raises:
        UsageError: it does not.
    """
    kind, _, index = name.partition(':')
    count = torch.cuda.device_count()
    if name == 'cpu':
        return CPU
    if kind != 'cuda' or not (index.isdecimal() or name == 'cuda'):
        raise UsageError(f'--device {name}: allowed are cpu, cuda, cuda:0, cuda:1, ...')
    if int(index or 0) >= count:
        available = f'{count}, from cuda:0' if count else 'no GPU'
        raise UsageError(
            f'--device {name}: torch sees {available}. Use --device cpu, or one of those.'
        )
    return torch.device('cuda', int(index or 0))


def time_interleaved(
    candidates: Iterable[Callable[[], Any]],
    rounds: int,
    device: torch.device = CPU,
    seconds: float = inf,
    min_rounds: int = 2,
) -> list[list[float]]:
    """Times of each candidate in ms, one for each of n rounds, each in another order.

    Orders are drawn, the same in every run: what a candidate leaves in the cache is no advantage
    for the same one always.

    Two more calls of each come first, the second of which counts only if n is 0. Its time decides
    how many rounds fit into `seconds`: n is at most `rounds` and, if `rounds` allows, at least
    `min_rounds`. A candidate whose first call raises `BaselineUnsupported` gets an empty list.
    """
    candidates = list(candidates)
    supported = [i for i, f in enumerate(candidates) if _runs(f)]
    first = {i: _time(candidates[i], device, 1) for i in supported}
    calls = {i: _calls(ms, device) for i, ms in first.items()}
    total = sum(first.values()) / 1000
    n = min(rounds, max(min_rounds, int(min(seconds / max(total, 1e-9), rounds))))
    times, orders = [[] for _ in candidates], random.Random(0)
    for _ in range(n):
        for i in orders.sample(supported, len(supported)):
            times[i].append(_time(candidates[i], device, calls[i]))
    return times if n else [[first[i]] if i in first else [] for i in range(len(candidates))]


def min_times(rounds: int, *candidates: Callable[[], Any]) -> list[float]:
    """Shortest time of each candidate on the CPU in ms, alternating within each round."""
    return [min(times) for times in time_interleaved(candidates, rounds)]


def _runs(f: Callable[[], Any]) -> bool:
    try:
        f()
    except BaselineUnsupported:
        return False
    return True


def _calls(ms: float, device: torch.device) -> int:
    """How many calls are timed together."""
    return 1 if device == CPU else max(1, min(_GPU_CALLS, int(_GPU_MS / max(ms, 1e-3))))


def _time(f: Callable[[], Any], device: torch.device, calls: int) -> float:
    """Milliseconds of a call, on a GPU the mean of several."""
    if device == CPU:
        start = time.perf_counter()
        f()
        return 1000 * (time.perf_counter() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(calls):
        f()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / calls


def saved_bytes(run: Callable, inputs: list[Tensor], weights: Iterable[Tensor]) -> int:
    """Bytes that autograd saves for the backward pass, without inputs and weights."""
    x = [t.clone().requires_grad_() for t in inputs]
    excluded = {value.untyped_storage().data_ptr() for value in (*weights, *x)}
    saved = {}

    def pack(t: Tensor) -> None:  # storages: an output kept as a tensor would never be freed
        storage = t.untyped_storage()
        if storage.data_ptr() not in excluded and not isinstance(t, nn.Parameter):
            saved[storage.data_ptr()] = storage

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run(*x)
    return sum(storage.nbytes() for storage in saved.values())


def peak_bytes(step: Callable[[], Any], device: torch.device = CPU) -> int:
    """Peak of the bytes that a step allocates."""
    step()
    gc.collect()  # so that the second step frees only what it has allocated
    if device != CPU:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    changes, _ = _allocations(step)
    return max(accumulate(changes), default=0)


def kept_bytes(run: Callable[[], Any]) -> int:
    """Bytes of what a call on the CPU allocates that are in use while its result is."""
    run()
    gc.collect()
    changes, _result = _allocations(run)
    return sum(changes)


def _allocations(run: Callable[[], Any]) -> tuple[list[int], Any]:
    """Bytes that a call allocates (above 0) and frees, in order, and its result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        result = run()
    events = trace.profiler.kineto_results.events()
    memory = sorted((e for e in events if e.name() == '[memory]'), key=event_start)
    return [event.nbytes() for event in memory], result


def release_memory() -> None:
    """Return freed memory to the system; with tuned malloc it would stay with the process."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def memory_limit(device: torch.device) -> float:
    """Bytes that a baseline may need: half of the machine's memory, or of a GPU's free memory."""
    if device == CPU:
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0] / 2
