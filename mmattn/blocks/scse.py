"""Concurrent spatial and channel squeeze and excitation.

Source: Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks,
    MICCAI 2018, arXiv 1803.02579, section 2.
Reference code: ai-med/squeeze_and_excitation, squeeze_and_excitation/squeeze_and_excitation.py.
    Differs from it in: the paper's sum is an option, too; any memory format.
"""

import torch
from torch import Tensor, nn

from mmattn.ops import channel_means, max_of_gates, position_dots, scale_channels
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded, zero
from .layers.channel_mlp import ChannelMLP


@MODELS.register_module()
class SCSE(AttentionBlock):
    """y = fusion(x * sigmoid(MLP(mean_hw(x))), x * sigmoid(w . x + b)).

    (N, C, H, W) -> same shape and dtype.

    Args:
        in_channels: C.
        reduction: C over the hidden width of the MLP, in 1..C.
        fusion: 'max' element by element (the authors' code), 'add' (the paper), or one gate alone:
            'channel', 'spatial'.
        init: 'paper' (gates near 0.5) or 'identity' (last layers 0; gates 2 sigmoid, with 'add'
            sigmoid, as 0.5 x + 0.5 x = x).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'scse'
    kind = 'channel, spatial'
    examples = (
        dict(in_channels=16),
        dict(in_channels=12, fusion='add'),
        dict(in_channels=12, fusion='channel'),
        dict(in_channels=12, fusion='spatial'),
    )

    def __init__(
        self, in_channels: int, *, reduction: int = 2, fusion: str = 'max', init: str = 'paper'
    ) -> None:
        super().__init__(in_channels, init)
        self._check_reduction(reduction, in_channels)
        self._check_choice('fusion', fusion, ('max', 'add', 'channel', 'spatial'))
        self.reduction, self.fusion = reduction, fusion
        if fusion != 'spatial':
            self.channel = ChannelMLP(in_channels, in_channels // reduction)
        if fusion != 'channel':
            self.spatial = nn.Sequential()
            self.spatial.add_module('conv', nn.Conv2d(in_channels, 1, 1))
        self.start()

    @property
    def gated(self) -> bool:
        return self.fusion != 'add'

    def start(self) -> None:
        if self.init == 'identity':
            if self.fusion != 'spatial':
                zero(self.channel.fc2)
            if self.fusion != 'channel':
                zero(self.spatial.conv)

    def _sigmoid(self, z: Tensor) -> Tensor:
        return z.sigmoid() if self.fusion == 'add' else super()._sigmoid(z)

    @recorded('channel')
    def channel_gate(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C)."""
        return self._sigmoid(self.channel(channel_means(x))).to(x.dtype)

    @recorded('spatial')
    def spatial_gate(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, H, W)."""
        conv = self.spatial.conv
        return self._sigmoid(position_dots(x, conv.weight, conv.bias)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if self.fusion == 'spatial':
            return x * self.spatial_gate(x)
        if self.fusion == 'channel':
            return scale_channels(x, self.channel_gate)
        channel, spatial = self.channel_gate(x)[:, :, None, None], self.spatial_gate(x)
        if self.fusion == 'add':
            return torch.addcmul(x * channel, x, spatial)
        return max_of_gates(x, channel, spatial)
