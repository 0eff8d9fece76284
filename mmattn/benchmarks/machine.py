"""What a machine can do: products and memory traffic per second, and how it is set up."""

import os
import platform
from collections.abc import Callable
from typing import Any

import torch

from .timing import CPU, time_interleaved

_SIDES = {'cpu': (512, 1024, 2048), 'cuda': (4096, 8192)}  # of square matrices
TRAFFIC_MB = (4, 40, 268)  # a map in the cache of a core, a typical map, and one of no cache
TUNED = {  # malloc keeps freed memory and reuses it, rather than request it from the system anew
    'MALLOC_MMAP_THRESHOLD_': str(1 << 33),
    'MALLOC_TRIM_THRESHOLD_': str(1 << 33),
}


def malloc_setting() -> str:
    """'tuned' if the environment of this process makes malloc reuse memory, else 'default'."""
    thresholds = (int(os.environ.get(name, 0)) for name in TUNED)
    return 'tuned' if all(value > 1 << 30 for value in thresholds) else 'default'


def describe_machine(
    device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Describe the machine; also measure products and memory traffic in the dtype.

    `gflops` is the best of products of square matrices and of a 3x3 convolution; `read_gb_per_s`
    is of a sum and `write_gb_per_s` of a fill, for each size of `TRAFFIC_MB`.
    """
    products = []
    for side in _SIDES[device.type]:
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        products.append((2 * side**3, lambda a=a, b=b: a @ b))
    x = torch.randn(1, 256, 64, 64, device=device).to(dtype)
    kernel = torch.randn(256, 256, 3, 3, device=device).to(dtype)
    flop = 2 * 9 * 256 * x.numel()
    products.append((flop, lambda: torch.conv2d(x, kernel, padding=1)))
    speeds = [flop / _shortest(f, device) / 1e6 for flop, f in products]
    read, write = {}, {}
    for size in TRAFFIC_MB:
        values = torch.ones(size * 10**6 // dtype.itemsize, device=device, dtype=dtype)
        read[size] = round(size / _shortest(values.sum, device), 1)
        write[size] = round(size / _shortest(lambda values=values: values.fill_(1), device), 1)
    return (dict() if device == CPU else dict(gpu=torch.cuda.get_device_name(device))) | dict(
        cpu=_cpu(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        malloc=malloc_setting(),
        gflops=round(max(speeds)),
        read_gb_per_s=read,
        write_gb_per_s=write,
        load=round(os.getloadavg()[0], 1),
    )


def describe_in_words(machine: dict[str, Any]) -> str:
    """The figures of `describe_machine` in one line."""
    shown = {
        key: ' '.join(f'{size} MB: {speed}' for size, speed in value.items())
        if isinstance(value, dict)
        else value
        for key, value in machine.items()
    }
    return ', '.join(f'{key} {value}' for key, value in shown.items())


def _shortest(f: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds."""
    return min(time_interleaved([f], 5, device)[0])


def _cpu() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            names = [line.partition(':')[2].strip() for line in file if 'model name' in line]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
