"""Facts about modules of other libraries that placing a plugin needs."""

import inspect
import re
from itertools import chain, count

from torch import nn

from mmattn.blocks import AttentionBlock


def abbreviation(cls: type[nn.Module]) -> str:
    """The attribute name of a plugin, as MMCV makes it: `_abbr_`, or the class in snake case."""
    words = re.sub(r'([A-Z]+)([A-Z][a-z])', r'\1_\2', cls.__name__)
    return getattr(cls, '_abbr_', re.sub(r'([a-z\d])([A-Z])', r'\1_\2', words).lower())


def free_attribute(owner: nn.Module, name: str) -> str:
    """`name`, or else `name_2`, `name_3`, ...: the first that is no attribute other than a module.

    The name of a module is returned as it is: two plugins of one name need a `postfix`.
    """
    candidates = chain([name], (f'{name}_{number}' for number in count(2)))
    return next(
        n for n in candidates if not hasattr(owner, n) or isinstance(getattr(owner, n), nn.Module)
    )


def iterates_over_children(module: nn.Module) -> bool:
    """Whether a forward runs all children in a loop, a block among them, too."""
    try:
        source = inspect.getsource(type(module).forward)
    except (OSError, TypeError):  # written in a terminal, or compiled
        return False
    loop = r'\bself\.(named_)?(children|modules)\(\)|\bself(\._modules)?\.(items|values)\(\)'
    return bool(re.search(rf'{loop}|\bin self:', source))


def last_conv(block: nn.Module) -> int:
    """The number of the last convolution conv1, conv2, ... of a residual block; 0 without any."""
    matches = [re.fullmatch(r'conv(\d+)', name) for name, _ in block.named_children()]
    return max((int(match[1]) for match in matches if match), default=0)


def out_channels(module: nn.Module) -> int | None:
    """Channels of the map that a module returns; None if its class does not tell."""
    for name in 'out_channels', 'num_features', 'num_channels':  # convolutions, norms
        if isinstance(getattr(module, name, None), int):
            return getattr(module, name)
    if isinstance(module, AttentionBlock):
        return module.in_channels
    if number := last_conv(module):
        return out_channels(module.get_submodule(f'conv{number}'))
    if isinstance(module, nn.Sequential):
        for child in reversed(module):
            if next(child.parameters(), None) is not None and not hasattr(child, 'plugin'):
                return out_channels(child)
    return None
