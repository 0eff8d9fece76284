"""Spatial group-wise enhance: each channel group weighs positions by similarity to its mean.

Source: Spatial Group-wise Enhance: Improving Semantic Feature Learning in Convolutional Networks,
    2019, arXiv 1905.09646, eq. 1-5.
Reference code: implus/PytorchInsight, classification/models/imagenet/resnet_sge.py. Differs from it
    in: channels that the groups do not divide are refused; a map of one pixel gives a finite gate.
    As in the code, and unlike the paper, the deviation is the unbiased one.
"""

import math

import torch
from torch import Tensor, nn

from mmattn.ops import group_enhance, group_similarity
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded

_EPS = 1e-5  # added to the deviation, units of x squared


@MODELS.register_module()
class SGE(AttentionBlock):
    """y = x * sigmoid(w_g t + b_g), t the standardised similarity to the mean of the group.

    (N, C, H, W) -> same shape and dtype.

    Args:
        in_channels: C, a multiple of groups.
        groups: G, number of contiguous groups of channels, each with its w and b; if None, the
            authors' 64, or the largest power of 2 that divides C.
        init: 'paper' (w = 0, b = 1: gate 0.731) or 'identity' (w = b = 0, gate 2 sigmoid).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'sge'
    kind = 'spatial, per group'
    gated = True
    examples = (dict(in_channels=64), dict(in_channels=16, groups=4))

    def __init__(self, in_channels: int, *, groups: int | None = None, init: str = 'paper') -> None:
        super().__init__(in_channels, init)
        groups = math.gcd(in_channels, 64) if groups is None else groups
        self._check_groups(groups, in_channels=in_channels)
        self.groups = groups
        self.weight = nn.Parameter(torch.zeros(1, groups, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, groups, 1, 1))
        self.start()

    def start(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, 0 if self.init == 'identity' else 1)

    @recorded('group')
    def gate(self, parts: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, G, C / G, P), P = H W of size (H, W) -> (N, G, H, W)."""
        t = group_similarity(parts, _EPS).unflatten(2, size)
        return self._sigmoid(t * self.weight + self.bias).to(parts.dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if self._recorder is not None:
            parts = x.unflatten(1, (self.groups, -1)).flatten(3)  # (N, G, C / G, P)
            self.gate(parts, x.shape[2:])  # otherwise the gates are not kept
        factor = 2 if self.init == 'identity' else 1
        weight, bias = self.weight.flatten(), self.bias.flatten()
        return group_enhance(x, self.groups, weight, bias, _EPS, factor)
