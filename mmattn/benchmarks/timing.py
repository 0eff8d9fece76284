"""Time and memory of calls on a CPU or a GPU, and a description of the machine."""

import contextlib
import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mmattn.errors import MmattnError, UsageError
from mmattn.torch_compat import event_start

CPU = torch.device('cpu')
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


def describe_machine(
    device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Describe the machine; also measure matmul and copy throughput in the dtype.

    `sgemm_gflops` is of two square matrices of 1024 rows, on a GPU 8192; `copy_gb_per_s` counts
    bytes read and bytes written.
    """
    side = 1024 if device == CPU else 8192
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    x, y = torch.ones(2, (1 << 28) // dtype.itemsize, device=device, dtype=dtype)  # 268 MB each
    product, copied = (
        time_interleaved([f], 5, device)[0][0] for f in (lambda: a @ b, lambda: x.copy_(y))
    )
    tuned = int(os.environ.get('MALLOC_MMAP_THRESHOLD_', 0)) > 1 << 30
    return (dict() if device == CPU else dict(gpu=torch.cuda.get_device_name(device))) | dict(
        cpu=_cpu(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        malloc='tuned' if tuned else 'default',
        sgemm_gflops=round(2 * side**3 / product / 1e6),
        copy_gb_per_s=round(2 * x.nbytes / copied / 1e6, 1),
        load=round(os.getloadavg()[0], 1),
    )


def time_interleaved(
    candidates: Iterable[Callable[[], Any]],
    rounds: int,
    device: torch.device = CPU,
    seconds: float = inf,
    min_rounds: int = 2,
) -> tuple[list[float | None], int]:
    """Shortest time of each candidate in ms over n rounds, alternating within a round; and n.

    One more call of each comes first, which counts only if n is 0. Its time decides how many rounds
    fit into `seconds`: n is at most `rounds` and, if `rounds` allows, at least `min_rounds`. A
    candidate whose first call raises `BaselineUnsupported` gets None.
    """
    candidates = list(candidates)
    first = [_first_time(f, device) for f in candidates]
    supported = [(i, f) for i, f in enumerate(candidates) if first[i] is not None]
    total = sum(first[i] for i, _ in supported) / 1000
    n = min(rounds, max(min_rounds, int(min(seconds / max(total, 1e-9), rounds))))
    times = [[time] for time in first]
    for _ in range(n):
        for i, f in supported:
            times[i].append(_time(f, device))
    return [t[0] if n == 0 or t[0] is None else min(t[1:]) for t in times], n


def min_times(rounds: int, *candidates: Callable[[], Any]) -> list[float | None]:
    """Shortest time of each candidate on the CPU in ms, alternating within each round."""
    return time_interleaved(candidates, rounds)[0]


def _first_time(f: Callable[[], Any], device: torch.device) -> float | None:
    try:
        return _time(f, device)
    except BaselineUnsupported:
        return None


def _time(f: Callable[[], Any], device: torch.device) -> float:
    if device == CPU:
        start = time.perf_counter()
        f()
        return 1000 * (time.perf_counter() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    f()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end)


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
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    current = peak = 0
    events = trace.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == '[memory]'), key=event_start):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


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


def _cpu() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            names = [line.partition(':')[2].strip() for line in file if 'model name' in line]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
