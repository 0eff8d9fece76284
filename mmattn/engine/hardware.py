"""A description of the machine."""

import os
import platform
from pathlib import Path

import torch


def hardware() -> str:
    """GPUs, or processor, cores and threads of this run: 'AMD EPYC, 2 cores, 2 threads'."""
    if torch.cuda.is_available():
        return f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}'
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((x.split(':', 1)[1].strip() for x in lines if x.startswith('model name')), name)
    return f'{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads'
