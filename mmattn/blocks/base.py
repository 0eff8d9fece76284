"""Base classes of blocks: argument checks, initialisation, declared limits, recording."""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmattn.hub import HubMixin
from mmattn.ops import Pairs
from mmattn.registry import MODELS
from mmattn.torch_compat import can_compile

PROMISES = {
    'any_size': 'any H and W from 1, any batch size, in eval',
    'training_on_one_image': 'a batch norm sees more than one value per channel',
    'half': 'fp16 and bf16, alone and under autocast, finite for |x| up to 1000',
    'gradcheck': 'gradients equal finite differences in fp64',
    'compile': 'torch.compile(fullgraph=True)',
    'export': 'torch.export with dynamic H and W',
    'onnx': 'ONNX with dynamic H and W, equal in onnxruntime',
    'identity': "init='identity' starts bit-exactly as the identity",
    'plugin': 'a plugin of the stock ResNets at after_conv1, after_conv2, after_conv3',
}


def recorded(name: str, by: str | None = None, view: str | None = None) -> Callable:
    """Mark the method that computes an attention map, so that `visualization.record` can watch it.

    Args:
        name: name of the map in a recording.
        by: name of a method that returns the map for given queries. It is called with their
            positions and the arguments of the marked method, the first of which has the grid of
            the queries in its last two axes. If None, the marked method returns the map itself.
        view: name of a method that brings the map into the shape in which it is recorded.
    """

    def decorate(method: Callable) -> Callable:
        @functools.wraps(method)
        def watched(self, *args):
            out = method(self, *args)
            if self._recorder is not None:
                result = out if view is None else getattr(self, view)(out)
                self._recorder(self, name, result, by and getattr(self, by), args)
            return out

        watched.recorded_name = name
        return watched

    return decorate


class AttentionBlock(HubMixin, nn.Module):
    """Base of all blocks.

    A block checks its arguments, builds its layers, and ends `__init__` with `self.start()`, which
    applies what differs from PyTorch's initialisation. `self.arguments` has all constructor
    arguments, defaults included.

    Args:
        in_channels: C of the (first) input.
        init: 'paper', the authors' initialisation, or 'identity'.
    """

    _abbr_: ClassVar[str]  # attribute name as a plugin, so part of checkpoint keys
    kind: ClassVar[str]  # axes of the attention: channel, spatial, pairwise, ...
    limits: ClassVar[dict[str, str]] = {}  # promise in PROMISES that does not hold -> why
    typical: ClassVar[dict[str, Any]] = {}  # the authors' values of arguments without a default
    examples: ClassVar[tuple[dict[str, Any], ...]] = (dict(in_channels=64),)  # arguments in tests
    gated: ClassVar[bool] = False  # whether `init` changes the function, see `form`
    plugin_memory: ClassVar[str] = 'recompute'  # as a plugin; 'keep' if that would take long
    dynamic_from: ClassVar[int] = 2  # least H and W of a program exported with dynamic sizes
    without_effect: ClassVar[tuple[str, ...]] = ()  # parameters whose gradient is 0 by definition
    is_init: bool = False  # `init_weights` was called
    _recorder: Callable | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not can_compile and 'forward' in vars(cls):  # a compiled network runs its blocks eagerly
            cls.forward = torch.compiler.disable(cls.forward)

    def __new__(cls, *args: Any, **kwargs: Any) -> 'AttentionBlock':
        block = super().__new__(cls)
        # partial, as copying and unpickling call this without arguments; invalid arguments are left
        # to __init__, whose message names the class
        with contextlib.suppress(TypeError):
            bound = inspect.signature(cls.__init__).bind_partial(None, *args, **kwargs)
            bound.apply_defaults()
            block.__dict__['arguments'] = dict(list(bound.arguments.items())[1:])
        return block

    def __init__(self, in_channels: int, init: str) -> None:
        super().__init__()
        self._check_whole(in_channels=in_channels)
        self._check_choice('init', init, ('paper', 'identity'))
        self.in_channels, self.init = in_channels, init

    @classmethod
    def build(cls, in_channels: int = 256, **arguments: Any) -> 'AttentionBlock':
        """Build a block with the authors' values for arguments without a default."""
        return cls(in_channels, **(cls.typical | arguments))

    @property
    def form(self) -> str:
        """Init variant that changes the function but not the state dict; '' if it does not.

        With 'identity' gates are 2 sigmoid rather than sigmoid, the offset is 0.5 rather than 1, or
        channels are not shuffled. Published weights carry it, and weights of one form are not
        loaded into the other.
        """
        return self.init if self.gated else ''

    def start(self) -> None:
        """Apply what differs from PyTorch's initialisation; draws no random numbers otherwise."""

    def reset_parameters(self) -> None:
        """Initialise all parameters as in a new block."""
        _reset(self)
        self.start()

    def init_weights(self) -> None:
        """Initialise the block again, once, after its parent has overwritten its weights.

        A network of mmengine calls this on every child that has it.
        """
        if self.is_init:
            return
        for child in self.children():
            if hasattr(child, 'init_weights') and not getattr(child, 'is_init', False):
                child.init_weights()
        self.reset_parameters()
        self.is_init = True

    def identity(self, *inputs: Tensor) -> Tensor:
        """Output of a new block with init='identity' for these inputs."""
        return inputs[0]

    def input_shapes(self, batch: int, height: int, width: int) -> list[tuple[int, ...]]:
        """Shapes of the arguments of `forward`."""
        return [(batch, self.in_channels, height, width)]

    def extra_repr(self) -> str:
        return ', '.join(f'{name}={value!r}' for name, value in self.arguments.items())

    def _sigmoid(self, z: Tensor) -> Tensor:
        """The gate of blocks that only scale; 1 at z = 0 with init='identity'."""
        return 2 * z.sigmoid() if self.init == 'identity' else z.sigmoid()

    def _check(self, ok: bool, message: str) -> None:
        if not ok:
            raise ValueError(f'{type(self).__name__}: {message}')

    def _check_whole(self, **values: Any) -> None:
        for name, value in values.items():
            is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            self._check(is_whole, f'{name}={value!r}, allowed whole numbers from 1')

    def _check_reduction(self, reduction: int, in_channels: int) -> None:
        self._check_whole(reduction=reduction)
        self._check(reduction <= in_channels, f'{reduction=}, allowed 1..{in_channels=}')

    def _check_groups(self, groups: int, times: int = 1, **channels: int) -> None:
        self._check_whole(groups=groups)
        divisor = 'groups' if times == 1 else f'{times} * groups'
        for name, count in channels.items():
            if count % (times * groups):
                allowed = [n for n in range(1, count + 1) if count % (times * n) == 0]
                shown = ', '.join(map(str, allowed[-6:])) or 'none: the channels are odd'
                self._check(
                    False, f'{groups=}, but {divisor} must divide {name}={count}; allowed {shown}'
                )

    def _check_choice(self, name: str, value: Any, allowed: tuple) -> None:
        options = ', '.join(repr(option) for option in allowed)
        self._check(value in allowed, f'{name}={value!r}, allowed {options}')

    def _check_input(self, x: Tensor, channels: int | None = None, name: str = 'input') -> None:
        channels = channels or self.in_channels  # None: any number
        if x.dim() != 4 or channels not in (None, x.shape[1]):
            self._check(False, f'{name} {tuple(x.shape)}, allowed (N, {channels or "C"}, H, W)')

    def _check_batch(self, norm: nn.Module, x: Tensor, name: str) -> None:
        """A batch norm in training needs two values per channel; SyncBN counts all processes."""
        is_local = isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) and norm.training
        if is_local and x.shape[0] * x.shape[2:].numel() == 1:
            self._check(
                False,
                f'{name} sees batch size {x.shape[0]} with one value per channel in training, '
                'allowed 2 and more; or use SyncBN over several processes, or .eval()',
            )


class PairwiseBlock(AttentionBlock):
    """Base of blocks in which positions attend to positions."""

    def pairs(self, *args: Any) -> Pairs:
        """Queries and keys, from the arguments of the recorded method."""
        raise NotImplementedError

    def attention_map(self, queries: Tensor, *args: Any) -> Tensor:
        """The weights of all keys for given queries, see `Pairs.weights`."""
        return self.pairs(*args).weights(queries)


def zero(layer: nn.Module) -> None:
    """Set weight and bias to 0."""
    for value in layer.parameters(recurse=False):
        nn.init.zeros_(value)


def _reset(module: nn.Module) -> None:
    for child in module.children():
        if hasattr(child, 'reset_parameters'):
            child.reset_parameters()
        else:
            _reset(child)


def registered_blocks() -> dict[str, type[AttentionBlock]]:
    """Name -> class of all blocks, those of mmattn and those that users registered."""
    blocks = {k: v for k, v in MODELS.module_dict.items() if issubclass(v, AttentionBlock)}
    return dict(sorted(blocks.items(), key=lambda item: item[0].lower()))
