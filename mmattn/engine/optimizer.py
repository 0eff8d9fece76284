"""Optimizers: the wrapper of bfloat16, the form that needs no host, checks of their config."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast
from torch import nn

from mmattn.log import warn
from mmattn.registry import OPTIM_WRAPPERS
from mmattn.text import nearest
from mmattn.torch_compat import supports_fused


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """mmengine's OptimWrapper with autocast to bfloat16, on a GPU or a CPU.

    Weights and gradients stay in fp32. bfloat16 has the range of fp32, so nothing scales the loss.
    """

    cast_dtype = torch.bfloat16  # as mmengine's AmpOptimWrapper names it

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), autocast(dtype=self.cast_dtype):
            yield


def warn_unused_custom_keys(optim_wrapper: dict, network: nn.Module) -> None:
    """Warn about `custom_keys` that match no parameter, common in copied recipes."""
    keys = (optim_wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}
    names = [n if '.' in n else f'.{n}' for n, _ in network.named_parameters()]
    for key in keys:
        if not any(key in name for name in names):
            hint = nearest(key, {n.split('.')[0] for n in names})
            warn(
                f'optim_wrapper.paramwise_cfg.custom_keys: {key!r} is in the name of no parameter.'
                f'{hint or f" They are named like {names[0]}."}'
            )


def with_fused_optimizer(optim_wrapper: dict, device: torch.device) -> dict:
    """The config of an optimizer wrapper with torch's fused optimizer, one kernel for all weights.

    On a GPU it can also skip a step on the device itself. The last bits of fused Adam and AdamW
    differ from those of torch's other implementations; fused SGD is bit-equal.

    Args:
        optim_wrapper: config; returned as it is if its optimizer cannot be fused, or the config
            chooses an implementation.
        device: of the weights.
    """
    optimizer = optim_wrapper.get('optimizer')
    if not isinstance(optimizer, dict) or optimizer.get('type') not in _FUSED:
        return optim_wrapper
    if {'fused', 'foreach', 'differentiable', 'capturable'} & set(optimizer):
        return optim_wrapper
    if not supports_fused(getattr(torch.optim, optimizer['type']), device):
        return optim_wrapper
    changed = copy.deepcopy(optim_wrapper)
    changed['optimizer']['fused'] = True
    return changed


_FUSED = ('SGD', 'Adam', 'AdamW')


def gradient_scaler(wrapper: OptimWrapper) -> Any:
    """The gradient scaler of an optimizer wrapper; None without one, and for one that is off."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def loss_scale(wrapper: OptimWrapper) -> float | None:
    """Scale of the gradient scaler; None without one."""
    scaler = gradient_scaler(wrapper)
    if scaler is None:
        return None
    return torch.tensor(scaler.get_scale()).item()  # rounded to fp32, as after the first step
