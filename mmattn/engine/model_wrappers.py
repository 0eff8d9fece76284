"""Networks inside what wraps them: DDP, test-time augmentation."""

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


def unwrap_ddp(model: nn.Module) -> nn.Module:
    """The model inside a DDP wrapper: what one process runs."""
    return model.module if is_model_wrapper(model) else model


def unwrap_model(model: nn.Module) -> nn.Module:
    """The network inside a DDP wrapper or a test-time augmentation: what checkpoints hold."""
    model = unwrap_ddp(model)
    return model.module if isinstance(model, BaseTTAModel) else model
