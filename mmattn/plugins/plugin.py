"""What the network knows of an inserted block, and how to find and train all of them."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Plugin:
    """A block in its place; an attribute of the block, `block.plugin`.

    Attributes:
        index: position of its plugin dict in the list that was given to `insert`.
        place: where it acts, in words, e.g. 'after backbone.layer1.0.bn3'.
        trainable: whether it learns in a frozen stage and its norms update under `norm_eval`; the
            key `learn` of the dict.
        layout: axes of the map there, 'NCHW' or 'NHWC'; the block itself always gets (N, C, H, W).
        memory: 'recompute', so that backward runs it again, or 'keep', so that it keeps what it
            needs.
        replaces: whether it stands in place of a convolution, rather than after or before a module.
        weight_map: for a replacement that starts from the weights of the convolution: (key of the
            convolution, key of the replacement, factor).
    """

    index: int
    place: str
    trainable: bool = False
    layout: str = 'NCHW'
    memory: str = 'keep'
    replaces: bool = False
    weight_map: tuple[tuple[str, str, float], ...] = ()


def named_plugins(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and block of everything that `insert` put into a network."""
    return ((path, module) for path, module in model.named_modules() if hasattr(module, 'plugin'))


def keep_trainable(model: nn.Module, mode: bool = True) -> None:
    """Undo, for plugins, the freezing of stages and norms that `model.train(mode)` has just done.

    Networks of mmattn call it themselves, for plugins with `learn=True`. In any other network all
    plugins become trainable.

    Args:
        model: a network with plugins.
        mode: training mode of the plugins.
    """
    all_plugins = not getattr(model, 'trains_plugins', False)
    for _, block in named_plugins(model):
        if all_plugins or block.plugin.trainable:
            block.requires_grad_(True)
            block.train(mode)
