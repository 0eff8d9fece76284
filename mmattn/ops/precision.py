"""Where the maths is wider than the data: fp32 for what half precision cannot hold."""

import contextlib

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """x in fp32, or as it is where it is fp32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def disable_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Autocast off for the device of x, so that what was widened stays wide."""
    if torch.amp.is_autocast_available(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def to_autocast_dtype(x: Tensor) -> Tensor:
    """x as autocast gives it to a matrix product: in its dtype where it is on, else as it is."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return x.to(torch.get_autocast_dtype(kind))
    return x
