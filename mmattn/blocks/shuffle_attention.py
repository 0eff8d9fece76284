"""Shuffle attention: half of each channel group gets a channel gate, half a spatial one.

Source: SA-Net: Shuffle Attention for Deep Convolutional Neural Networks, ICASSP 2021,
    arXiv 2102.00240, section 3.
Reference code: wofmanaf/SA-Net, models/sa_resnet.py. Differs from it in: channels that the groups
    do not divide are refused; with init='identity' the channels are not shuffled.
"""

import math

import torch
from torch import Tensor, nn

from mmattn.ops import scale_halves
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded


@MODELS.register_module()
class ShuffleAttention(AttentionBlock):
    """y = shuffle([x0 * sigmoid(cw mean_hw(x0) + cb) ; x1 * sigmoid(sw GN(x1) + sb)]).

    x0 and x1 are the halves of each of G contiguous channel groups, k = C / 2G channels each; GN
    standardises each channel. All groups share the parameters. The shuffle interleaves the two
    halves of the C channels.

    (N, C, H, W) -> same shape and dtype. Recordings hold the gates of both halves, (N, C / 2)
    and (N, C / 2, H, W).

    Args:
        in_channels: C, a multiple of 2 groups.
        groups: G; if None, the authors' 64, or the largest power of 2 that divides C / 2.
        init: 'paper' (cw = sw = 0, cb = sb = 1: gates 0.731) or 'identity' (all four 0, gates 2
            sigmoid, no shuffle).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'shuffle_attention'
    kind = 'channel, spatial'
    gated = True
    examples = (dict(in_channels=128), dict(in_channels=16, groups=2))

    def __init__(self, in_channels: int, *, groups: int | None = None, init: str = 'paper') -> None:
        super().__init__(in_channels, init)
        groups = math.gcd(in_channels // 2, 64) if groups is None else groups
        self._check_groups(groups, times=2, in_channels=in_channels)
        self.groups = groups
        width = in_channels // (2 * groups)
        for name in 'cweight', 'cbias', 'sweight', 'sbias':
            self.register_parameter(name, nn.Parameter(torch.zeros(1, width, 1, 1)))
        self.gn = nn.GroupNorm(width, width)
        self.start()

    def start(self) -> None:
        for weight, bias in (self.cweight, self.cbias), (self.sweight, self.sbias):
            nn.init.zeros_(weight)
            nn.init.constant_(bias, 0 if self.init == 'identity' else 1)

    @recorded('channel', view='by_image')
    def channel_gate(self, x0: Tensor) -> Tensor:
        """(N G, k, H, W) -> (N G, k, 1, 1)."""
        return self._sigmoid(self.cweight * x0.mean((2, 3), keepdim=True) + self.cbias)

    @recorded('spatial', view='by_image')
    def spatial_gate(self, x1: Tensor) -> Tensor:
        """(N G, k, H, W) -> same shape."""
        gn = self.gn  # as a function: the module refuses a single value; sweight and sbias fold in
        weight, bias = self.sweight.flatten(), self.sbias.flatten()
        weight, bias = weight * gn.weight, weight * gn.bias + bias
        return self._sigmoid(torch.group_norm(x1, gn.num_groups, weight, bias, gn.eps))

    def by_image(self, gate: Tensor) -> Tensor:
        """(N G, k, 1, 1) -> (N, C / 2); (N G, k, H, W) -> (N, C / 2, H, W)."""
        gate = gate.unflatten(0, (-1, self.groups)).flatten(1, 2)
        return gate.flatten(1) if gate.shape[2:].numel() == 1 else gate

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        parts = x.unflatten(1, (self.groups, -1)).flatten(0, 1)  # (N G, 2 k, H, W)
        x0, x1 = parts.chunk(2, dim=1)
        gates = self.channel_gate(x0).to(x.dtype), self.spatial_gate(x1).to(x.dtype)
        return scale_halves(x, *gates, shuffle=self.init != 'identity')
