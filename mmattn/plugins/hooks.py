"""Forward hooks that run plugins before or after a module, in the layout that they need."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from .recompute import Source, is_worthwhile, run_without_memory, source_of


class NotOneMap(TypeError):
    """A plugin follows a module that returns something else than one map."""


def take_nhwc(block: nn.Module) -> None:
    """Let a block that works on maps (N, C, H, W) take and return (N, H, W, C)."""
    block.register_forward_pre_hook(_to_nchw)
    block.register_forward_hook(_to_nhwc)


def _to_nchw(block: nn.Module, inputs: tuple) -> tuple:
    x = inputs[0]
    if x.ndim != 4:
        raise NotOneMap(
            f'plugin {block.plugin.place}: there is a tensor {tuple(x.shape)}, not (N, H, W, C)'
        )
    return (x.permute(0, 3, 1, 2), *inputs[1:])


def _to_nhwc(block: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.permute(0, 2, 3, 1).contiguous()  # a copy unless the block kept the format


def pin_forward(module: nn.Module) -> None:
    """Make `forward` an attribute of a module that has hooks, without changing what it does.

    Where a network cannot be compiled as one graph, torch.compile would run a module with hooks by
    the program of a sibling without, and the hooks would be skipped: it does not check that there
    are none (`skip_nnmodule_hook_guards`). It does check that there is no such attribute.
    """
    vars(module)['forward'] = module.forward


class RunPlugins:
    """A hook that sends a map through plugins, in the order in which they were added.

    Args:
        host: the module whose children the plugins are.
        place: where they act, in words.

    Attributes:
        names: names of the plugins among the host's children.
    """

    def __init__(self, host: nn.Module, place: str) -> None:
        self.host, self.place = host, place
        self.names: list[str] = []

    def __call__(self, module: nn.Module, inputs: tuple, output: Any = None) -> Any:
        if output is None:  # before the module
            return (self.run(inputs[0]), *inputs[1:])
        return self.run(output, functools.partial(source_of, module, inputs, output))

    def run(self, x: Tensor, find_source: Callable[[], Source | None] = lambda: None) -> Tensor:
        # a proxy is a tensor that torch.fx traces; torch.compile of 2.4 has no unions of types
        if not isinstance(x, (Tensor, Proxy)):
            raise NotOneMap(
                f'plugin {self.names[0]} {self.place}: there is a {type(x).__name__}, not one map. '
                'Name a module that returns one map, such as neck.fpn_convs.*'
            )
        blocks = [self.host._modules[name] for name in self.names]
        recomputed = all(block.plugin.memory == 'recompute' for block in blocks)
        if recomputed and is_worthwhile(blocks, x):
            return run_without_memory(blocks, x, find_source())
        for block in blocks:
            x = block(x)
        return x
