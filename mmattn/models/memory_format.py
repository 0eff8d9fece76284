"""Networks in channels_last: (N, C, H, W), stored as (N, H, W, C)."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .operators import adapt_operators, compiled_operators


def use_channels_last(network: nn.Module) -> None:
    """Store the kernels of a network, and the images that its backbone gets, in channels_last.

    Kernels of MMCV's compiled operators stay as they are, and so do the maps that these get.

    Args:
        network: changed in place, before an optimizer or DDP has its parameters.
    """
    kept = {id(p) for module in compiled_operators(network) for p in module.parameters()}
    for parameter in network.parameters():
        if parameter.dim() == 4 and id(parameter) not in kept:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    for path, module in network.named_modules():
        if path.rpartition('.')[2] == 'backbone':
            module.register_forward_pre_hook(_to_channels_last)
    adapt_operators(network)


@contextlib.contextmanager
def contiguous_kernels(network: nn.Module) -> Iterator[None]:
    """Kernels are contiguous within: initial values are drawn in the order of storage."""
    kernels = [p for p in network.parameters() if p.dim() == 4 and not p.is_contiguous()]
    for kernel in kernels:
        kernel.data = kernel.data.contiguous()
    try:
        yield
    finally:
        for kernel in kernels:
            kernel.data = kernel.data.to(memory_format=torch.channels_last)


def _to_channels_last(backbone: nn.Module, inputs: tuple) -> tuple:
    images = inputs[0]
    if not isinstance(images, Tensor) or images.dim() != 4:
        return inputs
    return (images.contiguous(memory_format=torch.channels_last), *inputs[1:])
