"""Networks inside what wraps them: DDP, test-time augmentation."""

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


def unwrap_model(model: nn.Module) -> nn.Module:
    """The network inside a DDP wrapper or a test-time augmentation."""
    if is_model_wrapper(model):
        model = model.module
    return model.module if isinstance(model, BaseTTAModel) else model
