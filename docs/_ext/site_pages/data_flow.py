"""The data flow of a block, seen by running it: its layers and operations, and what each returns.

Layers of a block are steps as a whole, and so are the functions of `mmattn.ops`; of the code in
between every operation of torch is one. Changes of shape and type alone are left out.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmattn.blocks import AttentionBlock

_CHANNELS, _SIZE = 256, (40, 56)  # their halves, quarters and eighths are all different numbers
_SAME_VALUES = {  # operations whose result has the values of their input
    'view', 'reshape', 'flatten', 'unflatten', 'transpose', 'permute', 'squeeze', 'unsqueeze',
    'contiguous', 'to', 'float', 'expand', 'expand_as', 'getitem', 'get', 'detach', 'clone',
    'movedim', 'swapaxes', 'view_as', 'type_as', 'upcast', 'match_memory_format', 'channels_last',
    'split', 'chunk', 'unbind',
}  # fmt: skip
_NAMES = {
    'add': '+', 'radd': '+', 'iadd': '+', 'sub': '−', 'rsub': '−', 'mul': '×', 'rmul': '×',
    'imul': '×', 'div': '÷', 'truediv': '÷', 'matmul': 'matrix product', 'bmm': 'matrix product',
    'cat': 'concatenation', 'stack': 'concatenation', 'conv2d': 'Conv2d', 'conv1d': 'Conv1d',
    'linear': 'Linear', 'interpolate': 'resizing', 'amax': 'maximum', 'max': 'maximum',
    'first max': 'maximum', 'channel mean': 'mean over channels',
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step of a block.

    Attributes:
        name: what is done: an operation, or the class of a layer.
        layers: attributes of the block whose weights take part.
        shape: of the result, in symbols: ('N', 'C', 'H', 'W').
        sources: indices of the steps whose results it reads.
    """

    name: str
    layers: tuple[str, ...]
    shape: tuple[str, ...]
    sources: tuple[int, ...]


@dataclass
class DataFlow:
    """Steps of a block in the order in which they run; the first `inputs` are its arguments."""

    steps: list[Step] = field(default_factory=list)
    inputs: int = 0


def trace(cls: type[AttentionBlock]) -> DataFlow:
    """Run a block with the authors' arguments, and see what it does.

    Raises:
        ValueError: the result does not come from the inputs, as far as can be seen.
    """
    block = cls.build(_CHANNELS).train()
    shapes = block.input_shapes(2, *_SIZE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = [torch.randn(shape) for shape in shapes]
    tracer = _Tracer(block)
    names = ['x'] if len(inputs) == 1 else _argument_names(cls)
    for name, value in zip(names, inputs, strict=True):
        tracer.add(name, (), value, ())
    with ExitStack() as stack:
        stack.enter_context(_watched_modules(block, tracer))
        stack.enter_context(_watched_operations(tracer))
        stack.enter_context(tracer)
        output = block(*inputs)
    last = tracer.step_of.get(id(output))
    if last is None or last < len(inputs):
        raise ValueError(f'{cls.__name__}: cannot see where its result comes from')
    return _reachable(tracer.steps, last, len(inputs))


class _Tracer(TorchFunctionMode):
    """Notes the operations of torch outside of layers and of functions of `mmattn.ops`."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.depth = 0  # layers and functions that are running
        self.step_of: dict[int, int] = {}  # id of a tensor -> index of the step that returned it
        self.layers_of: dict[int, tuple[str, ...]] = {}  # id of a tensor that is made of weights
        self.alive: list[Tensor] = []  # so that no id is used twice
        for name, value in (*block.named_parameters(), *block.named_buffers()):
            self.layers_of[id(value)] = (name.rpartition('.')[0] or name,)

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self.depth:
            name = getattr(function, '__name__', '').strip('_')
            self.note(name, (args, kwargs or {}), result)
        return result

    def note(self, name: str, inputs: Any, result: Any, layers: tuple[str, ...] = ()) -> None:
        """Note an operation, unless it returns no tensor or has no input of the block."""
        results = list(_tensors(result))
        if not results:
            return
        sources, made_of = [], list(layers)
        for value in _tensors(inputs):
            sources.append(self.step_of.get(id(value)))
            made_of += self.layers_of.get(id(value), ())
        sources = list(dict.fromkeys(index for index in sources if index is not None))
        made_of = tuple(dict.fromkeys(made_of))
        self.alive += results
        if not sources:
            self.layers_of.update((id(value), made_of) for value in results)
        elif name in _SAME_VALUES:
            self.step_of.update((id(value), sources[0]) for value in results)
        else:
            self.add(name, made_of, results[0], tuple(sources))
            self.step_of.update((id(value), len(self.steps) - 1) for value in results)

    def add(self, name: str, layers: tuple[str, ...], value: Tensor, sources: tuple) -> None:
        name = name.replace('_', ' ').strip()
        self.steps.append(Step(_NAMES.get(name, name), layers, _symbols(value.shape), sources))
        self.step_of[id(value)] = len(self.steps) - 1
        self.alive.append(value)


def _watched_modules(block: nn.Module, tracer: _Tracer) -> ExitStack:
    """Hooks that note every layer of the block as one step.

    A sequence is no layer. A block asks its layers for hooks, and then calls them one by one.
    """

    def enter(*_: Any) -> None:
        tracer.depth += 1

    def leave(path: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        tracer.depth -= 1
        if not tracer.depth:
            tracer.note(type(module).__name__.lstrip('_'), inputs, output, (path,))

    stack = ExitStack()
    for path, module in block.named_modules():
        if path and type(module) not in (nn.Sequential, nn.ModuleList):
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(functools.partial(leave, path)).remove)
    return stack


def _watched_operations(tracer: _Tracer) -> ExitStack:
    """Functions of `mmattn.ops`, in the modules of the blocks, that are noted as one step each."""

    def watched(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            tracer.depth += 1
            try:
                result = function(*args, **kwargs)
            finally:
                tracer.depth -= 1
            if not tracer.depth:
                tracer.note(function.__name__, (args, kwargs), result)
            return result

        return run

    stack = ExitStack()
    modules = [m for name, m in sys.modules.items() if name.startswith('mmattn.blocks.')]
    for module in modules:
        for name, value in list(vars(module).items()):
            home = getattr(value, '__module__', None) or ''
            is_function = callable(value) and not isinstance(value, type)
            if is_function and home.startswith('mmattn.ops') and name != 'disable_autocast':
                stack.callback(setattr, module, name, value)
                setattr(module, name, watched(value))
    return stack


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, nn.Module):  # a layer that a function is given
        yield from value.parameters()


def _argument_names(cls: type[AttentionBlock]) -> list[str]:
    code = cls.forward.__code__
    return list(code.co_varnames[1 : code.co_argcount])


def _symbols(shape: torch.Size) -> tuple[str, ...]:
    """A shape with letters for what follows from the input."""
    height, width = _SIZE
    parts = {_CHANNELS: 'C', height: 'H', width: 'W', height * width: 'HW', height + width: 'H + W'}
    for divisor in 2, 4, 8, 16, 32, 64:
        parts[_CHANNELS // divisor] = f'C/{divisor}'
    for divisor in 2, 4, 8:
        parts[height // divisor], parts[width // divisor] = f'H/{divisor}', f'W/{divisor}'
    symbols = [str(n) if n <= 3 else parts.get(n, str(n)) for n in shape]
    if shape and shape[0] == 2:
        symbols[0] = 'N'
    return tuple(symbols)


def _reachable(steps: list[Step], last: int, inputs: int) -> DataFlow:
    """The steps that the last one depends on, renumbered; all inputs stay."""
    needed, open_steps = set(range(inputs)), [last]
    while open_steps:
        index = open_steps.pop()
        if index not in needed:
            needed.add(index)
            open_steps += steps[index].sources
    new = {index: number for number, index in enumerate(sorted(needed))}
    kept = [
        Step(s.name, s.layers, s.shape, tuple(new[i] for i in s.sources))
        for s in (steps[index] for index in sorted(needed))
    ]
    return DataFlow(kept, inputs)
