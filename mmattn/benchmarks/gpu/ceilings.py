"""What the device can do: bytes copied and products of matrices, which no block exceeds."""

import contextlib
from importlib.metadata import PackageNotFoundError, version

import torch

from .bench import Bench
from .timing import time_calls
from .variants import with_tf32

_FULL = (1 << 31, 8192)  # bytes, rows of a square matrix
_SMALL = (1 << 22, 128)


def measure(bench: Bench) -> None:
    """Rows 'machine' and 'ceiling': GB/s of a copy, TFLOP/s of square products."""
    bench.row('machine', **_describe(bench))
    nbytes, side = _SMALL if bench.small else _FULL
    x, y = torch.ones(2, nbytes // 2, device=bench.device, dtype=torch.bfloat16)
    ms = time_calls(bench, lambda _, x=x, y=y: x.copy_(y))
    bench.row('ceiling', name='copy', ms=ms, gb_per_s=round(2 * nbytes / ms['median'] / 1e6, 1))
    del x, y
    for name, dtype, tf32 in (
        ('bf16', torch.bfloat16, False),
        ('fp16', torch.float16, False),
        ('tf32', torch.float32, True),
        ('fp32', torch.float32, False),
    ):
        a, b = torch.randn(2, side, side, device=bench.device).to(dtype)
        with with_tf32() if tf32 else contextlib.nullcontext():
            ms = time_calls(bench, lambda _, a=a, b=b: a @ b)
        flops = round(2 * side**3 / ms['median'] / 1e9, 2)
        bench.row('ceiling', name=f'product {name}', ms=ms, tflop_per_s=flops)


def _describe(bench: Bench) -> dict:
    found = dict(torch=torch.__version__, cuda=torch.version.cuda, threads=torch.get_num_threads())
    try:
        found['triton'] = version('triton')
    except PackageNotFoundError:
        found['triton'] = None
    found['cudnn_tf32'] = torch.backends.cudnn.allow_tf32
    found['matmul_tf32'] = torch.backends.cuda.matmul.allow_tf32
    if bench.device.type == 'cuda':
        properties = torch.cuda.get_device_properties(bench.device)
        found |= dict(
            gpu=properties.name,
            capability=f'{properties.major}.{properties.minor}',
            multiprocessors=properties.multi_processor_count,
            memory_gb=round(properties.total_memory / 1e9, 1),
            free_gb=round(torch.cuda.mem_get_info(bench.device)[0] / 1e9, 1),
        )
    return found
