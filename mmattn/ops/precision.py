"""Precision: fp32 for maths that half precision cannot hold."""

import contextlib

import torch
from torch import Tensor

from mmattn.torch_compat import HAS_OLD_EXPORT, autocast_dtype, has_autocast, is_compiling

_WIDE = (torch.float32, torch.float64)


def upcast(x: Tensor) -> Tensor:
    """x in fp32; unchanged if it is fp32 or wider."""
    if x.dtype in _WIDE:
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def disable_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Context without autocast on the device of x, so that upcast tensors stay in fp32."""
    device = x.device.type
    is_off = autocast_dtype(device) is None
    if is_off and (HAS_OLD_EXPORT or not is_compiling()):  # a program may run under autocast later
        return contextlib.nullcontext()
    return (
        torch.autocast(device, enabled=False) if has_autocast(device) else contextlib.nullcontext()
    )


def to_autocast_dtype(x: Tensor) -> Tensor:
    """x in the dtype that autocast gives to matrix products; unchanged where autocast is off."""
    dtype = autocast_dtype(x.device.type)
    return x if dtype is None else x.to(dtype)
