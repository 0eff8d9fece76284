"""MMCV and MMSegmentation classes with our arguments and keys, and deformable convolutions."""

import inspect
from collections.abc import Callable

from torch import nn

from mmattn import blocks

from ..author_module import AuthorModule


def same_class(cls: str) -> Callable[[AuthorModule], nn.Module]:
    """A class of MMCV or MMSegmentation with the arguments and keys of our block `cls`."""

    def build(author: AuthorModule) -> nn.Module:
        block = getattr(blocks, cls)
        names = [n for n in inspect.signature(block).parameters if n != 'init']
        if 'in_channels' in author.ctor:
            author.channels('in_channels')
        author.keep()
        return block(**{name: author.argument(name) for name in names if name in author.ctor})

    return build


def same_class_or(
    cls: str, convert_author: Callable[[AuthorModule], nn.Module]
) -> Callable[[AuthorModule], nn.Module]:
    """MMSegmentation's class of the same name has `channels`, the authors' has `key_channels`."""
    convert_mmseg = same_class(cls)
    return lambda author: (
        convert_mmseg(author) if 'channels' in author.ctor else convert_author(author)
    )


def deformable_conv(name: str) -> Callable[[AuthorModule], nn.Module]:
    def build(author: AuthorModule) -> nn.Module:
        try:
            from mmcv import ops
        except ImportError as error:
            raise ValueError(
                f'from_author: {name} is a compiled operator of mmcv, which cannot be imported '
                f'({error}). Install mmcv with its operators.'
            ) from error
        layer = getattr(ops, name)
        parameters = {n for base in layer.__mro__ for n in _init_parameters(base)}
        arguments = {key: author.argument(key) for key in list(author.ctor) if key in parameters}
        author.channels('in_channels')
        author.keep()
        return layer(**arguments)

    return build


def _init_parameters(base: type) -> list[str]:
    return list(inspect.signature(base.__init__).parameters) if base is not object else []
