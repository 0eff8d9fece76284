"""Label maps that the loader left uint8, on their way into a network."""

import torch
from torch import nn


def widen_labels(preprocessor: nn.Module) -> None:
    """Let a preprocessor get label maps of 8 bits as int64, which losses expect, on its device.

    Before that, a batch has an eighth of the bytes on its way from the workers and to a GPU; see
    `mmattn.datasets.transforms.PackSegInputs`.

    Args:
        preprocessor: of a network.
    """
    preprocessor.register_forward_pre_hook(_widen)


def _widen(preprocessor: nn.Module, inputs: tuple) -> None:
    batch = inputs[0] if inputs else None
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    if not isinstance(samples, list | tuple):
        return
    device = getattr(preprocessor, 'device', torch.device('cpu'))
    for sample in samples:
        label = getattr(sample, 'gt_sem_seg', None)
        data = getattr(label, 'data', None)
        if isinstance(data, torch.Tensor) and data.dtype == torch.uint8:
            label.data = data.to(device, non_blocking=True).long()
