"""What 2.1, the oldest torch that is supported, lacks or names otherwise."""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import distributed, nn

if hasattr(torch.compiler, 'is_compiling'):
    _is_compiling = torch.compiler.is_compiling
else:  # before 2.3
    _is_compiling = torch._utils.is_compiling


def is_compiling() -> bool:
    """Whether a graph is recorded, by torch.compile, torch.export or torch.jit.trace.

    A graph holds operators of torch alone: a saved program could not call Python.
    """
    return _is_compiling() or torch.jit.is_tracing()


# before 2.4 torch.compile gives wrong values for what is written into views of a tensor
can_compile = hasattr(torch.amp, 'is_autocast_available')

# arguments by which one function's programs do not count against another's limit; none in old torch
_compile_arguments = inspect.signature(torch.compile).parameters
COMPILE_APART = {'isolate_recompiles': True} if 'isolate_recompiles' in _compile_arguments else {}


@contextlib.contextmanager
def report_uncompiled() -> Iterator[list[BaseException]]:
    """Run what torch.compile cannot compile as it is, and collect the errors instead of logging.

    Yields:
        a list, filled with the errors as they occur.
    """
    failures: list[BaseException] = []

    def collect(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.levelno < logging.WARNING:
            return True
        failures.append(error)
        return False

    log = logging.getLogger('torch._dynamo.convert_frame')
    log.addFilter(collect)
    try:
        with torch._dynamo.config.patch(suppress_errors=True), _free_sizes():
            yield failures
    finally:
        log.removeFilter(collect)


def _free_sizes() -> contextlib.AbstractContextManager:
    """Sizes that are equal by chance, such as channels and height, do not become one."""
    from torch.fx.experimental import _config

    if not hasattr(_config, 'use_duck_shape'):  # before 2.5
        return contextlib.nullcontext()
    return _config.patch(use_duck_shape=False)


# before 2.7 torch does not say which of the two it does: both use operators of every format
_is_exporting = getattr(torch.compiler, 'is_exporting', _is_compiling)


def is_exporting() -> bool:
    """Whether a graph is recorded that other programs run, by torch.export or torch.jit.trace."""
    return _is_exporting() or torch.jit.is_tracing()


# torch.export before 2.7 refuses a program that switches autocast off, and pools even sizes alone
HAS_OLD_EXPORT = not hasattr(torch.compiler, 'is_exporting')
# attention on a CPU holds logits in fp16 there, which overflow
HAS_NARROW_ATTENTION = HAS_OLD_EXPORT
# torch.compile there, seen with 2.4, gives a wrong gradient of several maxima of one map
HAS_WRONG_MAX_GRADIENT = HAS_OLD_EXPORT

if HAS_OLD_EXPORT:

    def gradient_edge(x: torch.Tensor) -> Any:
        """x, as `torch.autograd.grad` takes outputs; before 2.5 these are tensors alone."""
        return x

else:

    def gradient_edge(x: torch.Tensor) -> Any:
        """The place of x in its graph, as `torch.autograd.grad` takes outputs; x may be freed."""
        return torch.autograd.graph.get_gradient_edge(x)


if hasattr(torch.amp, 'is_autocast_available'):

    def has_autocast(device: str) -> bool:
        """Whether a type of device has autocast."""
        # torch.compile of 2.10 cannot trace the question: it would split each block into parts
        return device in ('cpu', 'cuda') or torch.amp.is_autocast_available(device)

    def autocast_dtype(device: str) -> torch.dtype | None:
        """The dtype of matrix products on a type of device under autocast; None where it is off."""
        if has_autocast(device) and torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return None

else:  # before 2.4

    def has_autocast(device: str) -> bool:
        """Whether a type of device has autocast."""
        return device in ('cpu', 'cuda')

    def autocast_dtype(device: str) -> torch.dtype | None:
        """The dtype of matrix products on a type of device under autocast; None where it is off."""
        if device == 'cpu' and torch.is_autocast_cpu_enabled():
            return torch.get_autocast_cpu_dtype()
        if device == 'cuda' and torch.is_autocast_enabled():
            return torch.get_autocast_gpu_dtype()
        return None


def assume_constant_result(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compiler.assume_constant_result`, which would load the compiler: seconds of imports.

    torch.compile calls the function while it traces, and keeps its result.
    """
    function._dynamo_marked_constant = True
    return function


OutOfMemoryError = getattr(torch, 'OutOfMemoryError', torch.cuda.OutOfMemoryError)  # before 2.5
# before 2.8 most errors of a device are plain RuntimeErrors
AcceleratorError = getattr(torch, 'AcceleratorError', torch.cuda.CudaError)

# before 2.2 errors of a store are plain RuntimeErrors
DistError = getattr(
    distributed, 'DistError', getattr(distributed, 'DistBackendError', RuntimeError)
)

if hasattr(torch.serialization, 'set_crc32_options'):
    get_crc32_options = torch.serialization.get_crc32_options
    set_crc32_options = torch.serialization.set_crc32_options

else:  # before 2.6

    def get_crc32_options() -> bool:
        """Whether `torch.save` writes checksums: always."""
        return True

    def set_crc32_options(compute_crc32: bool) -> None:
        """Changes nothing."""


@functools.cache
def has_cpp_compiler() -> bool:
    """Whether `torch.compile` finds a C++ compiler."""
    # loaded on first use: a second of imports
    from torch._inductor import exc

    try:
        from torch._inductor.cpp_builder import get_cpp_compiler
    except ImportError:  # before 2.4
        from torch._inductor.codecache import cpp_compiler as get_cpp_compiler
    try:
        get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return False
    return True


if hasattr(torch.Generator, 'clone_state'):
    Generator = torch.Generator

else:  # before 2.4

    class Generator(torch.Generator):
        """A generator of random numbers that can be copied, as mmengine does with configs."""

        def __deepcopy__(self, memo: dict) -> 'Generator':
            return Generator(self.device).set_state(self.get_state())


def register_load_state_dict_pre_hook(module: nn.Module, hook: Callable[..., None]) -> None:
    """Call `hook(module, state_dict, ...)` before a module loads weights."""
    if hasattr(module, 'register_load_state_dict_pre_hook'):
        module.register_load_state_dict_pre_hook(hook)
    else:  # before 2.5
        module._register_load_state_dict_pre_hook(hook, with_module=True)


def set_submodule(model: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the module at a path; `nn.Module` has this since 2.5."""
    parent, _, name = path.rpartition('.')
    setattr(model.get_submodule(parent), name, module)


def fake_tensor_mode(shape_env: Any) -> contextlib.AbstractContextManager:
    """Tensors without values, of fixed shapes; a value that is read is a symbol of `shape_env`."""
    # loaded on first use: half a second of imports
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        return FakeTensorMode(allow_non_fake_inputs=True, shape_env=shape_env, static_shapes=True)
    except TypeError:  # before 2.2, where a value cannot be read
        return FakeTensorMode(allow_non_fake_inputs=True)


def event_start(event: Any) -> int:
    """When an event of the profiler began: in ns, before 2.4 in us."""
    return event.start_ns() if hasattr(event, 'start_ns') else event.start_us()


def supports_fused(optimizer: type[torch.optim.Optimizer], device: torch.device) -> bool:
    """Whether an optimizer takes `fused=True` on a device; on a CPU since 2.4."""
    try:
        optimizer([torch.zeros(1, device=device)], lr=0.1, fused=True)
    except (TypeError, RuntimeError):
        return False
    return True


_FINITE_CHECK = 'aten::_amp_foreach_non_finite_check_and_unscale_'


def check_finite_(tensors: Iterable[torch.Tensor], found: torch.Tensor) -> None:
    """Set a flag where a value of some tensors is not finite, without reading it.

    Args:
        tensors: of floating point, dense or sparse.
        found: one number in fp32; becomes 1.
    """
    groups: dict[tuple, list[torch.Tensor]] = {}
    for tensor in tensors:
        values = tensor._values() if tensor.is_sparse else tensor
        groups.setdefault((values.device, values.dtype), []).append(values.detach())
    for (device, _), group in groups.items():
        here = found.to(device)
        if torch._C._dispatch_has_kernel_for_dispatch_key(_FINITE_CHECK, device.type.upper()):
            torch._amp_foreach_non_finite_check_and_unscale_(group, here, torch.ones_like(here))
        else:  # before 2.3, on a CPU
            sums = torch.stack([values.sum().float() for values in group])
            here = torch.maximum(here, (~sums.isfinite().all()).float())
        if here is not found:
            found.copy_(torch.maximum(found, here.to(found.device)))
