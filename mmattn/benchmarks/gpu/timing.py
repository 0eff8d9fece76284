"""Times of calls in ms: as called, and replayed from a CUDA graph, without the cost of launches.

A call takes a number, by which it chooses its input, so that inputs do not stay in the cache.
"""

import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .bench import Bench

_ROUNDS = 5
_WARM_UPS = 15
_CALLS = 20  # between two events
_ROUND_MS = 60  # fewer calls if they would take longer
_WARM_UP_MS = 200

Call = Callable[[int], Any]
Times = dict[str, float]


def time_calls(bench: Bench, call: Call) -> Times:
    """Median, least and most of 5 rounds of up to 20 calls each, after 15 calls; on a CPU of one.

    Slow calls are fewer: a round takes about 60 ms, or one call if that takes longer.
    """
    call(0)
    if bench.small:
        start = time.perf_counter()
        call(0)
        return summarized([1000 * (time.perf_counter() - start)])
    once = _per_call(bench, lambda: call(1), 1)
    for number in range(_clamp(_WARM_UP_MS / once, _WARM_UPS)):
        call(number)
    count = calls_per_round(bench, call)

    def several() -> None:
        for number in range(count):
            call(number)

    return summarized([_per_call(bench, several, count) for _ in range(_ROUNDS)])


def calls_per_round(bench: Bench, call: Call) -> int:
    return _clamp(_ROUND_MS / _per_call(bench, lambda: call(1), 1), _CALLS)


def time_graph(bench: Bench, call: Call, inputs: int) -> Times:
    """As `time_calls`, replayed from a CUDA graph, in which each call has an input of its own.

    Raises:
        RuntimeError: the calls cannot be captured.
    """
    count = calls_per_round(bench, call)
    inputs = min(inputs, count)
    current, side = torch.cuda.current_stream(bench.device), torch.cuda.Stream(bench.device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        call(0)
        call(1)
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for number in range(inputs):
            call(number)
    replays = -(-count // inputs)

    def replay() -> None:
        for _ in range(replays):
            graph.replay()

    replay()
    return summarized([_per_call(bench, replay, replays * inputs) for _ in range(_ROUNDS)])


def peak_bytes(bench: Bench, call: Call) -> int:
    """Peak of the bytes that a call allocates on a GPU."""
    before = torch.cuda.memory_allocated(bench.device)
    torch.cuda.reset_peak_memory_stats(bench.device)
    call(0)
    return torch.cuda.max_memory_allocated(bench.device) - before


def launches(bench: Bench, call: Call) -> dict[str, Any]:
    """Number of kernels and copies of a call on a GPU, and the most frequent names."""
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            call(0)
            bench.synchronize()
        on_device = torch.autograd.DeviceType.CUDA
        names = Counter(e.name[:80] for e in trace.events() if e.device_type == on_device)
    except Exception as error:
        return dict(launches=None, launches_error=bench.survive(error))
    return dict(launches=sum(names.values()), kernels=dict(names.most_common(6)))


def summarized(times: list[float]) -> Times:
    return dict(
        median=round(median(times), 4), least=round(min(times), 4), most=round(max(times), 4)
    )


def _per_call(bench: Bench, run: Callable[[], Any], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    bench.synchronize()
    start.record()
    run()
    end.record()
    bench.synchronize()
    return max(start.elapsed_time(end), 1e-3) / calls


def _clamp(number: float, most: int) -> int:
    return max(1, min(most, int(number)))
