"""Rebuild an author's module as ours, from class name, constructor arguments and weights."""

from typing import Any

from torch import nn

from .author_module import AuthorModule
from .conversions import CLASSES, REFUSED


def from_author(
    system: str,
    cls: str,
    ctor: dict[str, Any],
    state_dict: dict[str, Any],
    *,
    path: str = '',
    in_channels: int | None = None,
) -> nn.Module:
    """Rebuild an author's module as ours, with its weights.

    Args:
        system: 'se', 'eca', 'scse', 'cmpese', 'sk', 'cbam', 'bam', 'sge', 'sanet', 'coord', 'ema',
            'triplet', 'simam', 'lsk', 'lska', 'gc', 'snl', 'nl', 'ccnet', 'ann', 'danet', 'mhsa',
            'ran', 'gate', 'stn', 'dcnv1' or 'dcnv2'.
        cls: class name, such as 'SELayer'; a remark in brackets after it is ignored.
        ctor: constructor arguments under the author's names; arguments left out have the author's
            defaults. `recurrence` of criss-cross attention goes here, too.
        state_dict: the author's weights, tensors or arrays.
        path: file of the class in the author's repository, where two classes share a name.
        in_channels: input channels, for classes whose constructor does not take them.

    Returns:
        our module in eval mode, in the dtype of the weights. It computes what the author's module
        computes in eval mode, and in training where that has no dropout.

    Raises:
        ValueError: a system, class, argument or tensor is unknown, missing or of a wrong shape;
            the class is deliberately not converted, with the reason.
    """
    if system not in CLASSES:
        raise ValueError(f'from_author: {system=}, allowed {", ".join(sorted(CLASSES))}')
    name = cls.split('(')[0].strip() if not cls.startswith('cSE(') else 'cSE(x)+sSE(x)'
    author = AuthorModule(system, name, dict(ctor), state_dict, path, in_channels)
    conversions = CLASSES[system]
    if name not in conversions:
        for start, reason in REFUSED.get(system, {}).items():
            if name.startswith(start):
                author.fail(reason)
        author.fail(f'unknown class, allowed {", ".join(conversions)}')
    module = conversions[name](author)
    author.finish(module)
    return module.eval()
