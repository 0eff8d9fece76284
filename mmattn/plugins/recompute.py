"""Plugins that keep nothing for the backward pass: it runs them again.

What a plugin reads is computed again as well where it comes out of a norm, which keeps its own
input in any case. So a gate after a norm takes no memory but for its weights.

Source: Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174, section 3; In-Place
Activated BatchNorm, CVPR 2018, arXiv 1712.02616, section 3.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmattn.blocks import AttentionBlock
from mmattn.torch_compat import is_compiling

from .plugin import named_plugins

Source = Callable[[], Tensor]
_running = threading.local()


def run_without_memory(
    blocks: list[nn.Module],
    x: Tensor,
    source: Source | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Run blocks one after another; backward runs them again, with the same results.

    Statistics of norms inside the blocks are updated once.

    Args:
        blocks: modules that take and return one map.
        x: the map.
        source: computes x again, from what is kept in any case; None to keep x.
        forward: what to run instead of calling the blocks in turn.
    """
    hooks = contextlib.nullcontext()
    if source is not None:
        # x itself would be kept by the hooks
        hooks = saved_tensors_hooks(functools.partial(_pack, _place(x), source), _unpack)
    # blocks of mmattn draw no random numbers
    draws = not all(isinstance(block, AttentionBlock) for block in blocks)
    with hooks:
        return checkpoint(_Run(blocks, forward), x, use_reentrant=False, preserve_rng_state=draws)


def is_worthwhile(blocks: list[nn.Module], x: Tensor) -> bool:
    """Whether these blocks would keep something for a backward pass, and are not observed."""
    if is_compiling() or not torch.is_grad_enabled() or not isinstance(x, Tensor):
        return False  # a compiler decides itself; a proxy of torch.fx is no tensor
    if getattr(_running, 'inside', False):
        return False  # what is run again runs this again
    parameters = (p for block in blocks for p in block.parameters())
    if not (x.requires_grad or any(p.requires_grad for p in parameters)):
        return False
    return not any(getattr(m, '_recorder', None) for block in blocks for m in block.modules())


def recompute_forward(block: nn.Module) -> None:
    """Let a block that its container calls keep nothing for the backward pass but its input."""
    vars(block)['forward'] = functools.partial(_forward, block)


def _forward(block: nn.Module, x: Tensor) -> Tensor:
    forward = functools.partial(type(block).forward, block)
    if block.plugin.memory == 'recompute' and is_worthwhile([block], x):
        return run_without_memory([block], x, forward=forward)
    return forward(x)


def recompute_frozen(stage: nn.Module) -> None:
    """Let a stage in which plugins alone learn keep nothing for the backward pass but its input.

    For a gradient of the plugins autograd keeps what the frozen norms and activations after them
    read; without plugins it keeps nothing of a frozen stage that nothing precedes that learns.

    Args:
        stage: a container that takes and returns one map, such as `nn.Sequential`.
    """
    vars(stage)['forward'] = functools.partial(_frozen_forward, stage)


def _frozen_forward(stage: nn.Module, x: Tensor) -> Tensor:
    forward = functools.partial(type(stage).forward, stage)
    if is_worthwhile([stage], x) and not x.requires_grad and _is_frozen(stage):
        return run_without_memory([stage], x, forward=forward)
    return forward(x)


def _is_frozen(stage: nn.Module) -> bool:
    """Whether all that learns in a stage are plugins that keep nothing."""
    plugins = [block for _, block in named_plugins(stage) if block.plugin.memory == 'recompute']
    learning = {id(p) for block in plugins for p in block.parameters()}
    return not any(p.requires_grad and id(p) not in learning for p in stage.parameters())


def source_of(norm: nn.Module, inputs: tuple, x: Tensor) -> Source | None:
    """How to compute the output of a norm again from its input.

    Args:
        norm: any module.
        inputs: what it was called with.
        x: what it returned.

    Returns:
        A function of the same result to the bit, which leaves running statistics as they are; None
        for other modules than norms of torch over batch or groups, and where x is not the output
        itself.
    """
    made_by = type(getattr(x, 'grad_fn', None)).__name__
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        return None
    if isinstance(norm, _BatchNorm) and 'BatchNorm' in made_by and 'Sync' not in made_by:
        batch = norm.training or norm.running_mean is None
        statistics = (None, None) if batch else (norm.running_mean, norm.running_var)
        arguments = (*statistics, norm.weight, norm.bias, batch, 0.0, norm.eps)
        return _Again(F.batch_norm, inputs[0], arguments)
    if isinstance(norm, nn.GroupNorm) and 'GroupNorm' in made_by:
        arguments = norm.num_groups, norm.weight, norm.bias, norm.eps
        return _Again(F.group_norm, inputs[0], arguments)
    return None


class _Again:
    """A function of a map, called once more.

    Args:
        function: takes the map and arguments.
        x: the map, which the graph keeps.
        arguments: what else it takes.
    """

    def __init__(self, function: Callable[..., Tensor], x: Tensor, arguments: tuple) -> None:
        self.function, self.x, self.arguments = function, x.detach(), arguments
        self.version = x._version

    def __call__(self) -> Tensor:
        if self.x._version != self.version:
            raise RuntimeError(
                'the input of a norm before a plugin was changed in place after the norm had read '
                "it. Write memory='keep' in the dict of the plugin"
            )
        with torch.no_grad():
            return self.function(self.x, *self.arguments)


class _Run:
    """Calls blocks in turn, and from the second call on without updates of norms."""

    def __init__(self, blocks: list[nn.Module], forward: Callable[[Tensor], Tensor] | None) -> None:
        self.blocks, self.forward, self.is_first = blocks, forward, True

    def __call__(self, x: Tensor) -> Tensor:
        outer, _running.inside = getattr(_running, 'inside', False), True
        try:
            with contextlib.nullcontext() if self.is_first else _frozen_statistics(self.blocks):
                self.is_first = False
                if self.forward:
                    return self.forward(x)
                for block in self.blocks:
                    x = block(x)
            return x
        finally:
            _running.inside = outer


@contextlib.contextmanager
def _frozen_statistics(blocks: list[nn.Module]) -> Iterator[None]:
    """Norms in training write their running statistics to copies, which are thrown away."""
    norms = [m for block in blocks for m in block.modules() if isinstance(m, _BatchNorm)]
    kept = [(norm._buffers, dict(norm._buffers)) for norm in norms if norm.training]
    for buffers, values in kept:
        copies = {key: value.clone() for key, value in values.items() if value is not None}
        buffers.update(copies)
    try:
        yield
    finally:
        for buffers, values in kept:
            buffers.update(values)


def _pack(place: tuple, source: Source, saved: Tensor) -> Any:
    return source if _place(saved) == place else saved


def _place(x: Tensor) -> tuple:
    """What tensors of the same values in the same memory share; fake tensors have it, too."""
    return x.untyped_storage()._cdata, x.storage_offset(), x.shape, x.stride()


def _unpack(packed: Any) -> Tensor:
    return packed if isinstance(packed, Tensor) else packed()
