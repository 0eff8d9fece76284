"""Convolutional block attention module: a channel gate, then a spatial gate.

Source: CBAM: Convolutional Block Attention Module, ECCV 2018, arXiv 1807.06521, eq. 1-3.
Reference code: Jongchan/attention-module, MODELS/cbam.py, MODELS/model_resnet.py. Differs from it
    in: the pool 'lp' keeps a finite gradient at an all-zero channel. As in the code, and unlike the
    paper, the spatial gate reads the maximum before the mean and has a batch norm.
"""

import torch
from torch import Tensor, nn

from mmattn.ops import channel_mean, first_max, global_pool, scale_channels
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded, zero
from .layers.channel_mlp import ChannelMLP
from .layers.conv_norm_act import ConvNormAct, kaiming_normal

_MOMENTUM = 0.01  # momentum of the batch norm in the spatial gate, in the authors' code


@MODELS.register_module()
class CBAM(AttentionBlock):
    """x' = x * sigmoid(sum of MLP(pool(x))); y = x' * sigmoid(BN(conv([max_c x' ; mean_c x']))).

    (N, C, H, W) -> same shape and dtype.

    Args:
        in_channels: C.
        reduction: C over the hidden width of the MLP, in 1..C.
        kernel_size: side of the spatial kernel, odd.
        spatial: whether there is a spatial gate.
        pool_types: poolings that feed the MLP: 'avg', 'max', 'lp' (root of the sum of squares),
            'lse' (log of the sum of exponentials).
        init: 'paper' (as in the authors' ResNet: biases 0, the norm's weight 0, so the spatial gate
            is 0.5 everywhere) or 'identity' (last layers 0, gates 2 sigmoid).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'cbam'
    kind = 'channel, spatial'
    gated = True
    examples = (
        dict(in_channels=32),
        dict(in_channels=16, reduction=4, kernel_size=3, pool_types=('avg', 'lp', 'lse', 'max')),
        dict(in_channels=16, reduction=4, spatial=False),
    )

    def __init__(
        self,
        in_channels: int,
        *,
        reduction: int = 16,
        kernel_size: int = 7,
        spatial: bool = True,
        pool_types: tuple[str, ...] = ('avg', 'max'),
        init: str = 'paper',
    ) -> None:
        super().__init__(in_channels, init)
        self._check_reduction(reduction, in_channels)
        self._check_whole(kernel_size=kernel_size)
        self._check(kernel_size % 2 == 1, f'{kernel_size=}, allowed odd numbers')
        self._check(len(pool_types) > 0, f'{pool_types=}, allowed at least one')
        for kind in pool_types:
            self._check_choice('pool_types', kind, ('avg', 'max', 'lp', 'lse'))
        self.reduction, self.kernel_size = reduction, kernel_size
        self.has_spatial, self.pool_types = spatial, tuple(pool_types)
        self.channel = ChannelMLP(in_channels, in_channels // reduction)
        if spatial:
            norm = dict(type='BN', momentum=_MOMENTUM)
            self.spatial = ConvNormAct(2, 1, kernel_size, padding=kernel_size // 2, norm_cfg=norm)
        self.start()

    def start(self) -> None:
        nn.init.zeros_(self.channel.fc1.bias)
        nn.init.zeros_(self.channel.fc2.bias)
        if self.has_spatial:
            kaiming_normal(self.spatial.conv)
            nn.init.zeros_(self.spatial.bn.weight)
        if self.init == 'identity':
            zero(self.channel.fc2)

    @recorded('channel')
    def channel_gate(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C)."""
        z = sum(self.channel(global_pool(x, kind)) for kind in self.pool_types)
        return self._sigmoid(z).to(x.dtype)

    @recorded('spatial')
    def spatial_gate(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, H, W)."""
        m = torch.cat([first_max(x, 1)[:, None], channel_mean(x)], 1)  # (N, 2, H, W)
        return self._sigmoid(self.spatial(m)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        x = scale_channels(x, self.channel_gate)
        if self.has_spatial:
            self._check_batch(self.spatial.norm, x, 'the batch norm of the spatial gate')
            x = x * self.spatial_gate(x)
        return x
