"""The data flow of a block, seen by running it: its layers and operations, and what each returns.

Layers of a block are steps as a whole, and so are most functions of `mmattn.ops`; of the code in
between, and of the functions in `_OPENED`, every operation of torch is one. Changes of shape and
type alone are left out.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmattn.blocks import AttentionBlock

_RUNS = ((2, 256, 40, 56), (3, 512, 48, 80))  # N, C, H, W: a letter is what fits in both
_DIVISORS = (2, 4, 8, 16, 32, 64, 128)
_SAME_VALUES = {  # operations whose result has the values of their input
    'view', 'reshape', 'flatten', 'unflatten', 'transpose', 'permute', 'squeeze', 'unsqueeze',
    'contiguous', 'to', 'float', 'expand', 'expand_as', 'getitem', 'get', 'detach', 'clone',
    'movedim', 'swapaxes', 'view_as', 'type_as', 'upcast', 'match_memory_format', 'channels_last',
    'split', 'chunk', 'unbind', 'repeat', 'pad', 'unfold', 'hardshrink',
}  # fmt: skip
_OPENED = {  # functions that compute a formula in one go, which is shown as it is compiled
    'scale_channels', 'group_enhance', 'shuffle_attention', 'simam', 'scale_by_fused_sigmoid',
    'max_of_gates', 'scale_by_product', 'scale_by_sum', 'scale_by_sigmoid', 'channel_attention',
    'context_pool',
}  # fmt: skip
_SIGNS = {'+', '−', '×', '÷'}
_NAMES = {
    'add': '+', 'radd': '+', 'iadd': '+', 'sub': '−', 'rsub': '−', 'mul': '×', 'rmul': '×',
    'imul': '×', 'div': '÷', 'truediv': '÷', 'matmul': 'matrix product', 'bmm': 'matrix product',
    'cat': 'concatenation', 'stack': 'concatenation', 'conv2d': 'Conv2d', 'conv1d': 'Conv1d',
    'linear': 'Linear', 'interpolate': 'resizing', 'amax': 'maximum', 'max': 'maximum',
    'first max': 'maximum', 'channel mean': 'mean over channels', 'residual add': '+',
    'gt': '>', 'where': 'choice', 'resize bilinear': 'bilinear resizing', 'same conv': 'Conv2d',
    'position dots': 'Conv2d', 'max pool2d': 'max pooling', 'addcmul': '× and +', 'neg': '−',
    'rdiv': 'reciprocal', 'linalg vector norm': 'norm', 'baddbmm': 'matrix product and +',
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step of a block.

    Attributes:
        name: what is done: an operation, or the class of a layer.
        layers: attributes of the block whose weights take part.
        shapes: of the results, in symbols: ('N', 'C', 'H', 'W'); equal ones once.
        sources: indices of the steps whose results it reads.
    """

    name: str
    layers: tuple[str, ...]
    shapes: tuple[tuple[str, ...], ...]
    sources: tuple[int, ...]


@dataclass
class DataFlow:
    """Steps of a block in the order in which they run; the first `inputs` are its arguments."""

    steps: list[Step] = field(default_factory=list)
    inputs: int = 0


def trace(cls: type[AttentionBlock]) -> DataFlow:
    """Run a block with the authors' arguments, and see what it does.

    Raises:
        ValueError: the result does not come from the inputs, as far as can be seen; the steps are
            others for another size.
    """
    (steps, inputs), (others, _) = (_run(cls, *sizes) for sizes in _RUNS)
    if [(s.layers, s.sources) for s in steps] != [(s.layers, s.sources) for s in others]:
        raise ValueError(f'{cls.__name__}: does other things at another size')
    named = []
    for step, other in zip(steps, others, strict=True):
        name = step.name if step.name == other.name else step.name.partition(' ')[0]
        shapes = (_symbols(*pair) for pair in zip(step.shapes, other.shapes, strict=True))
        named.append(replace(step, name=name, shapes=tuple(dict.fromkeys(shapes))))
    return DataFlow(named, inputs)


def _run(
    cls: type[AttentionBlock], batch: int, channels: int, height: int, width: int
) -> tuple[list[Step], int]:
    """Steps of a block, with numbers for shapes, and how many of them are its inputs."""
    block = cls.build(channels).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = [torch.randn(shape) for shape in block.input_shapes(batch, height, width)]
    tracer = _Tracer(block)
    names = ['x'] if len(inputs) == 1 else _argument_names(cls)
    for name, value in zip(names, inputs, strict=True):
        tracer.add(name, (), [value], ())
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_watched_modules(block, tracer))
        stack.enter_context(_watched_operations(tracer))
        stack.enter_context(tracer)
        output = block(*inputs)
    last = tracer.step_of.get(id(output))
    if last is None or last < len(inputs):
        raise ValueError(f'{cls.__name__}: cannot see where its result comes from')
    return _reachable(tracer.steps, last, len(inputs)), len(inputs)


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
        elif name in _SAME_VALUES or self._adds_nothing(name, inputs):
            self.step_of.update((id(value), sources[0]) for value in results)
        else:
            shown = _NAMES.get(name.replace('_', ' ').strip(), name.replace('_', ' ').strip())
            if shown in _SIGNS:
                shown = ' '.join([shown, *map(_number, _numbers(inputs))])
            self.add(shown, made_of, results, tuple(sources))

    def add(
        self, name: str, layers: tuple[str, ...], results: list[Tensor], sources: tuple
    ) -> None:
        shapes = tuple(tuple(value.shape) for value in results)
        self.steps.append(Step(name, layers, shapes, sources))
        self.step_of.update((id(value), len(self.steps) - 1) for value in results)
        self.alive += results

    @staticmethod
    def _adds_nothing(name: str, inputs: Any) -> bool:
        """Whether it is the first addition of Python's sum, to 0."""
        return name in ('add', 'radd') and list(_numbers(inputs)) == [0]


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
                words = [value for value in args if isinstance(value, str)]
                tracer.note(' '.join([function.__name__, *words]), (args, kwargs), result)
            return result

        return run

    stack = ExitStack()
    modules = [m for name, m in sys.modules.items() if name.startswith('mmattn.blocks.')]
    for module in modules:
        for name, value in list(vars(module).items()):
            home = getattr(value, '__module__', None) or ''
            is_function = callable(value) and not isinstance(value, type)
            if not (is_function and home.startswith('mmattn.ops')) or name == 'disable_autocast':
                continue
            if name in _OPENED:
                _replace(stack, sys.modules[home], 'is_compiling', lambda: True)
            else:
                _replace(stack, module, name, watched(value))
    return stack


def _replace(stack: ExitStack, module: ModuleType, name: str, value: Any) -> None:
    stack.callback(setattr, module, name, getattr(module, name))
    setattr(module, name, value)


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


def _numbers(value: Any) -> Iterator[int | float]:
    """Numbers in the arguments of an operation on two values."""
    args, _ = value
    return (v for v in args if isinstance(v, int | float) and not isinstance(v, bool))


def _number(value: int | float) -> str:
    return f'{value:.4g}'


def _argument_names(cls: type[AttentionBlock]) -> list[str]:
    code = cls.forward.__code__
    return list(code.co_varnames[1 : code.co_argcount])


def _symbols(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[str, ...]:
    """A shape with letters for what follows from the input.

    Args:
        shape: in the first run.
        other: in the second one.
    """
    return tuple(_symbol(*pair) for pair in zip(shape, other, strict=True))


def _symbol(number: int, other: int) -> str:
    """The letters that give both numbers; the number itself if it is the same."""
    if number == other:
        return str(number)
    known = zip(*map(_letters, _RUNS), strict=True)
    return next((a for (a, first), (_, second) in known if (first, second) == (number, other)), '?')


def _letters(sizes: tuple[int, int, int, int]) -> list[tuple[str, int]]:
    """What a number can be: letters, and their value for these sizes."""
    batch, channels, height, width = sizes
    values = [(f'{k} N' if k > 1 else 'N', k * batch) for k in (1, 2, 4, 8, 16, 32, 64)]
    for letter, size in ('C', channels), ('H', height), ('W', width):
        values += [(letter, size), *((f'{letter}/{k}', size // k) for k in _DIVISORS)]
    values += [('2C', 2 * channels), ('3C', 3 * channels), ('HW', height * width)]
    return [*values, ('H + W', height + width), ('h', height + 1), ('w', width + 1)]


def _reachable(steps: list[Step], last: int, inputs: int) -> list[Step]:
    """The steps that the last one depends on, renumbered; all inputs stay."""
    needed, open_steps = set(range(inputs)), [last]
    while open_steps:
        index = open_steps.pop()
        if index not in needed:
            needed.add(index)
            open_steps += steps[index].sources
    new = {index: number for number, index in enumerate(sorted(needed))}
    chosen = (steps[index] for index in sorted(needed))
    return [replace(s, sources=tuple(new[i] for i in s.sources)) for s in chosen]
