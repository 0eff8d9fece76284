"""MMCV's compiled operators in networks of another memory format or precision.

An operator reads a map as (N, C, H, W) without gaps, whatever its strides say: one in channels_last
gives wrong values and no error. It knows fp16, fp32 and fp64: one in bfloat16 is an error, and
boxes, which mmdet rounds to the dtype of the maps, would be pixels off.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.ops import disable_autocast
from mmattn.torch_compat import autocast_dtype


def compiled_operators(network: nn.Module) -> Iterator[nn.Module]:
    """Modules of `mmcv.ops`, and the RoI extractors that call them."""
    for module in network.modules():
        if type(module).__module__.startswith('mmcv.ops.') or hasattr(module, 'roi_layers'):
            yield module


def adapt_operators(network: nn.Module) -> None:
    """Let compiled operators take maps in any memory format, and in bfloat16, which they upcast.

    Args:
        network: changed in place; a copy of it is adapted, too.
    """
    for module in compiled_operators(network):
        forward = module.forward
        if not (isinstance(forward, functools.partial) and forward.func is _run):
            module.forward = functools.partial(_run, forward)


def _run(forward: Callable, *inputs: Any, **options: Any) -> Any:
    inputs, options = _plain(inputs), _plain(options)
    tensor = next(_tensors((inputs, options)), None)
    if tensor is None or autocast_dtype(tensor.device.type) is not torch.bfloat16:
        return forward(*inputs, **options)
    with disable_autocast(tensor):
        return forward(*inputs, **options)


def _plain(value: Any) -> Any:
    """A value whose tensors are contiguous, and in fp32 instead of bfloat16."""
    if isinstance(value, Tensor):
        return (value.float() if value.dtype is torch.bfloat16 else value).contiguous()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
