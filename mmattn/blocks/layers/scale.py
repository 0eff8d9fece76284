"""A learned scalar factor, the `gamma` of residual attention blocks."""

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """y = scale * x, any shape; the state-dict key `scale`, of shape (), is MMCV's.

    Args:
        start: the value of `scale` before training.
    """

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.start = start
        self.scale = nn.Parameter(torch.tensor(float(start)))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, self.start)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale
