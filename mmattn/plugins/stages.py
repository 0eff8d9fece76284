"""Stages of a backbone: numbered siblings that are sequences of blocks, whatever their names."""

import re
from collections.abc import Iterator
from string import digits

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_stages(model: nn.Module) -> list[str]:
    """Paths of the stages of a network, in order; [] if it has none.

    A stage is a sequence of blocks, such as `layer1` of a ResNet, or a module with one, such as
    `stages.0` of a ConvNeXt of timm with its `blocks`. A block has a forward of its own: a
    convolution with its norm is none. Two or more stages are children of one module, and their
    names differ in the number at the end. They hold a twentieth of the parameters or more, as
    parallel branches do not. The outermost such module counts, that of `backbone` before others.
    """
    for root in _roots(model):
        least = sum(p.numel() for p in root.parameters()) / 20
        for module in root.modules():
            for names in _groups(module):
                weights = (p for name in names for p in module.get_submodule(name).parameters())
                if sum(p.numel() for p in weights) >= least:
                    prefix = next(path for path, m in model.named_modules() if m is module)
                    return [f'{prefix}.{name}' if prefix else name for name in names]
    return []


def block_paths(stage: nn.Module) -> list[str]:
    """Paths, within a stage, of its blocks, plugins left out."""
    sequence = _sequence(stage)
    if sequence is None:
        return [name for name, m in stage.named_children() if not hasattr(m, 'plugin')]
    name, blocks = sequence
    return [f'{name}.{block}' if name else block for block in _members(blocks)]


def last_of_each_size(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Of the numbered siblings whose maps take the most sizes, the last one of each size.

    Args:
        model: the network; only the modules of its `backbone` count if it has one.
        shapes: path -> (C, H, W) of the map that the module returns.
    """
    inside = {id(module) for module in next(_roots(model)).modules()}
    groups: dict[str, dict[tuple, str]] = {}
    for path, (_, *size) in shapes.items():
        parent, _, name = path.rpartition('.')
        if name[-1].isdigit() and id(model.get_submodule(path)) in inside:
            group = groups.setdefault(f'{parent}.{name.rstrip(digits)}', {})
            group.pop(tuple(size), None)
            group[tuple(size)] = path
    best = max(groups.values(), key=len, default={})
    return list(best.values()) if len(best) > 1 else []


def _roots(model: nn.Module) -> Iterator[nn.Module]:
    """The backbone of a network, if there is a module of this name, and the network."""
    backbone = getattr(model, 'backbone', None)
    if isinstance(backbone, nn.Module):
        yield backbone
    yield model


def _groups(module: nn.Module) -> list[list[str]]:
    """Names of children that may be stages, grouped by what precedes their numbers."""
    if hasattr(module, 'res_layers'):  # a ResNet of MMDetection, perhaps of one stage
        return [list(module.res_layers)]
    groups: dict[str, list[str]] = {}
    for name, child in module.named_children():
        if (match := re.fullmatch(r'(.*?)\d+', name)) and _sequence(child) is not None:
            groups.setdefault(match[1], []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _sequence(module: nn.Module) -> tuple[str, nn.Module] | None:
    """The sequence of blocks that a stage is ('', itself) or has as a child (name, child)."""
    candidates = [('', module), *module.named_children()]
    return next((pair for pair in candidates if _is_sequence_of_blocks(pair[1])), None)


def _is_sequence_of_blocks(module: nn.Module) -> bool:
    if not isinstance(module, _CONTAINERS):
        return False
    blocks = [module.get_submodule(name) for name in _members(module)]
    return bool(blocks) and all(map(_is_block, blocks))


def _members(container: nn.Module) -> list[str]:
    return [name for name, m in container.named_children() if not hasattr(m, 'plugin')]


def _is_block(module: nn.Module) -> bool:
    has_own_forward = not isinstance(module, _CONTAINERS) or type(module).forward not in (
        nn.Sequential.forward,
        nn.Module.forward,
    )
    return has_own_forward and next(module.children(), None) is not None
