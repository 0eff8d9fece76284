"""Shuffle attention: half of each channel group gets a channel gate, half a spatial one.

Source: SA-Net: Shuffle Attention for Deep Convolutional Neural Networks, ICASSP 2021,
    arXiv 2102.00240, section 3.
Reference code: wofmanaf/SA-Net, models/sa_resnet.py. Differs from it in: channels that the groups
    do not divide are refused; with init='identity' the channels are not shuffled.
"""

import math

import torch
from torch import Tensor, nn

from mmattn.ops import shuffle_attention, shuffle_gates
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

    @property
    def affine(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Weight and bias of channel gates and of spatial gates, the norm's folded in, (k) each."""
        channel = self.cweight.flatten(), self.cbias.flatten()
        weight, bias = self.sweight.flatten(), self.sbias.flatten()
        return channel, (weight * self.gn.weight, weight * self.gn.bias + bias)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        arguments = x, self.groups, *self.affine, self.gn.eps, 2 if self.init == 'identity' else 1
        if self._recorder is not None:  # otherwise the gates are not kept
            for name, gate in zip(('channel', 'spatial'), shuffle_gates(*arguments), strict=True):
                getattr(self, f'{name}_gate')(gate)
        return shuffle_attention(*arguments, shuffle=self.init != 'identity')

    @recorded('channel')
    def channel_gate(self, gate: Tensor) -> Tensor:
        """(N G, k, 1, 1) -> (N, C / 2)."""
        return gate.flatten(1).unflatten(0, (-1, self.groups)).flatten(1)

    @recorded('spatial')
    def spatial_gate(self, gate: Tensor) -> Tensor:
        """(N G, k, H, W) -> (N, C / 2, H, W)."""
        return gate.unflatten(0, (-1, self.groups)).flatten(1, 2)
