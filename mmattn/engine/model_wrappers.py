"""Networks inside what wraps them: DDP, test-time augmentation; and copies of networks."""

import copy
from collections.abc import Iterable

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn


def unwrap_ddp(model: nn.Module) -> nn.Module:
    """The model inside a DDP wrapper: what one process runs."""
    return model.module if is_model_wrapper(model) else model


def unwrap_model(model: nn.Module) -> nn.Module:
    """The network inside a DDP wrapper or a test-time augmentation: what checkpoints hold."""
    model = unwrap_ddp(model)
    return model.module if isinstance(model, BaseTTAModel) else model


def copy_model(model: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """A deep copy of a network; activation checkpointing is off in it.

    Args:
        model: network without wrappers.
        shared: tensors of the network that the copy has as well, instead of copies of them.

    Raises:
        RuntimeError, TypeError, AttributeError: the network holds what cannot be copied.
    """
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for module in copied.modules():
        wrapped = getattr(module.__dict__.get('forward'), '__wrapped__', None)
        if getattr(wrapped, '__self__', module) is not module:
            del module.forward  # it wraps the forward of the original
    return copied
