"""Compile Triton kernels for a GPU that is not there, and read what the machine code needs.

    with compile_only() as launches:
        my_function(torch.empty(2, 97, 97, 64, device='meta'))
    assert not launches[0].spills

Nothing runs: inside the context a launch `kernel[grid](...)` only compiles, specialised as it would
be for these arguments on a device. Tensors on the device meta take no memory; call the function
that launches, below its check of the device.
"""

import contextlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# what one program may have: 227 KiB on 9.0, 163 KiB on 8.0, 99 KiB on 8.6 and 8.9
SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}


def can_compile_kernels() -> bool:
    """Whether there is a Triton that compiles, not its interpreter, with NVIDIA's assembler and disassembler."""
    if not importlib.util.find_spec('triton'):
        return False
    import triton.language as tl
    from triton import JITFunction

    return (
        isinstance(tl.max, JITFunction) and _tool('ptxas').exists() and _tool('cuobjdump').exists()
    )


@dataclass(frozen=True)
class Launch:
    """A kernel as it was compiled for one launch.

    Attributes:
        name: name of the function.
        constants: values of its `tl.constexpr` arguments, by name.
        key: equal for launches that share one compilation.
        registers: 32-bit registers per thread, at most 255.
        stack: bytes of local memory per thread.
        shared: bytes of shared memory per program.
        local: instructions that read or write local memory, as spilled registers do.
        matrix: instructions on tensor cores.
        fma: multiplications and additions in fp32, outside tensor cores.
    """

    name: str
    constants: dict[str, Any]
    key: str
    registers: int
    stack: int
    shared: int
    local: int
    matrix: int
    fma: int

    @property
    def spills(self) -> bool:
        """Whether registers are kept in memory."""
        return self.stack > 0 or self.local > 0

    def __str__(self) -> str:
        constants = ' '.join(f'{name}={value}' for name, value in self.constants.items())
        return (
            f'{self.name}({constants}): {self.registers} registers, stack {self.stack} B, '
            f'{self.local} local, {self.shared / 1024:.0f} KiB shared, {self.matrix} matrix, '
            f'{self.fma} fma'
        )


@contextlib.contextmanager
def compile_only(capability: int = 90) -> Iterator[list[Launch]]:
    """Compile each launch for a CUDA device and append it to the list; nothing runs.

    Args:
        capability: ten times that of the device.
    """
    from triton import JITFunction, knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget('cuda', capability, 32)

        def get_current_device(self) -> tuple[str, int]:  # names the kernels kept in this process
            return 'compile only', capability

        def get_current_stream(self, device: Any) -> int:
            return 0

    launches: list[Launch] = []
    seen: dict[str, Launch] = {}
    run, active = JITFunction.run, driver._active

    def compiled(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel.hash not in seen:
            given = dict(zip(self.arg_names, args)) | kwargs
            constants = {p.name: given[p.name] for p in self.params if p.is_constexpr}
            seen[kernel.hash] = _read(self.__name__, constants, kernel)
        launches.append(seen[kernel.hash])

    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope():
        knobs.cache.dir = folder
        driver.set_active(Driver())
        JITFunction.run = compiled
        try:
            yield launches
        finally:
            JITFunction.run = run
            driver._active = active


def _read(name: str, constants: dict[str, Any], kernel: Any) -> Launch:
    """What the code of a compiled kernel says."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'kernel.cubin'
        path.write_bytes(kernel.asm['cubin'])
        usage, code = (
            subprocess.run(
                [_tool('cuobjdump'), option, path], check=True, capture_output=True, text=True
            ).stdout
            for option in ('-res-usage', '-sass')
        )
    numbers = {key: int(value) for key, value in re.findall(r'(REG|STACK):(\d+)', usage)}

    def count(pattern: str) -> int:
        return len(re.findall(rf'\b{pattern}\b', code))

    return Launch(
        name=name,
        constants=constants,
        key=kernel.hash,
        registers=numbers['REG'],
        stack=numbers['STACK'],
        shared=kernel.metadata.shared,
        local=count('(?:LDL|STL)'),
        matrix=count('(?:HGMMA|HMMA)'),
        fma=count('FFMA'),
    )


def _tool(name: str) -> Path:
    """A program of the CUDA toolkit in Triton's wheel."""
    package = Path(importlib.util.find_spec('triton').origin).parent
    suffix = '.exe' if sys.platform == 'win32' else ''
    return package / 'backends' / 'nvidia' / 'bin' / f'{name}{suffix}'
