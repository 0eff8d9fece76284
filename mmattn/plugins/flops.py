"""Counting FLOP: torch's counter, extended by the operators that it does not know."""

import contextlib
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

_aten = torch.ops.aten
Shape = tuple[int, ...]


def flop_counter() -> FlopCounterMode:
    """torch's FLOP counter (2 per multiply-accumulate), for the operators of our blocks, too."""
    known = {
        _aten.mv: lambda a, x, *args, **kwargs: 2 * torch.Size(a).numel(),
        _aten.addmm_: _product,
        _aten.baddbmm_: _product,
    }
    with contextlib.suppress(AttributeError):  # torch 2.1 computes it of other operators
        known[_aten._scaled_dot_product_flash_attention_for_cpu] = _attention
    return FlopCounterMode(display=False, custom_mapping=known)


def _product(added: Shape, a: Shape, b: Shape, *args: Any, **kwargs: Any) -> int:
    """(..., N, K) times (..., K, M)."""
    return 2 * torch.Size(a).numel() * b[-1]


def _attention(q: Shape, k: Shape, v: Shape, *args: Any, **kwargs: Any) -> int:
    """(N, heads, P, E), (N, heads, S, E), (N, heads, S, C)."""
    return 2 * torch.Size(q[:3]).numel() * k[2] * (q[3] + v[3])
