"""The two fully connected layers of channel gates."""

from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.ops import disable_autocast, upcast


def excite(z: Tensor, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """W2 relu(W1 z + b1) + b2, (N, C) -> (N, C'), in fp32 or wider, which is cheap for vectors."""
    with disable_autocast(z):
        return linear_fp32(linear_fp32(z, fc1).relu(), fc2)


def linear_fp32(z: Tensor, layer: nn.Linear) -> Tensor:
    """layer(z) in fp32 or wider, whatever the dtype of its weights."""
    bias = None if layer.bias is None else upcast(layer.bias)
    return F.linear(upcast(z), upcast(layer.weight), bias)


class ChannelMLP(nn.Module):
    """`excite` as a module: keys `fc1.*` (hidden, C) and `fc2.*` (C, hidden)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, z: Tensor) -> Tensor:
        return excite(z, self.fc1, self.fc2)
