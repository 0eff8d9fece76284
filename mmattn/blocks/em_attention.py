"""Efficient multi-scale attention: a gate for each group of channels, from strips and a 3x3 kernel.

Source: Efficient Multi-Scale Attention Module with Cross-Spatial Learning, ICASSP 2023,
    arXiv 2305.13563, fig. 3.
Reference code: YOLOonMe/EMA-attention-module, EMA_attention_module. Differs from it in: channels
    that the groups do not divide are refused in the constructor; one group of one image works at
    one pixel; half precision does not overflow.

One of the two cross-spatial branches is constant. The weights of the channels of the 3x3 branch are
the softmax of the mean of a normed map, and the mean over all positions of a norm per channel is
its bias: p = softmax(gn.bias), whatever the input. The code pools the normed map; the paper draws
both branches alike. It follows that the 3x3 branch is a convolution to one channel a group, with
the kernel sum_o p_o W_o, and that its mean, which the other branch needs, takes nine sums of the
map. So neither the map of the 3x3 convolution nor the normed map is computed.
"""

import math

from torch import Tensor, nn

from mmattn.ops import (
    cross_spatial,
    cross_spatial_logits,
    disable_autocast,
    strip_and_window_means,
    upcast,
)
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded, zero


@MODELS.register_module()
class EMAttention(AttentionBlock):
    """y = x * sigmoid(sum_c p_c v_c + sum_c q_c n_c), for each group of C / G channels.

    v = conv3x3(x), n = norm(x * sigmoid(conv1x1(row means)) * sigmoid(conv1x1(column means))),
    p = softmax_c(mean n) = softmax_c(gn.bias), q = softmax_c(mean v); the norm is per channel.

    (N, C, H, W) -> same shape and dtype.

    Args:
        in_channels: C, a multiple of groups.
        groups: G, number of contiguous groups of channels, which share all weights; if None, the
            authors' 32, or the largest power of 2 that divides C.
        init: 'paper' (gates near 0.5) or 'identity' (conv3x3 and gn 0, gate 2 sigmoid).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'ema_attention'  # not ema: keys of moving averages are called so
    kind = 'spatial, per group'
    gated = True
    examples = (
        dict(in_channels=64),
        dict(in_channels=16, groups=4),
        dict(in_channels=6, groups=6),
        dict(in_channels=5, groups=1),
    )

    def __init__(self, in_channels: int, *, groups: int | None = None, init: str = 'paper') -> None:
        super().__init__(in_channels, init)
        groups = math.gcd(in_channels, 32) if groups is None else groups
        self._check_groups(groups, in_channels=in_channels)
        self.groups, channels = groups, in_channels // groups
        self.conv1x1 = nn.Conv2d(channels, channels, 1)
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.gn = nn.GroupNorm(channels, channels)
        self.start()

    def start(self) -> None:
        if self.init == 'identity':
            zero(self.conv3x3)
            zero(self.gn)

    def branches(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W) -> strips, scale, kernel and bias of `cross_spatial`, in fp32 or wider."""
        strips, windows = strip_and_window_means(x, self.groups)
        weight, bias = upcast(self.conv1x1.weight).flatten(1), upcast(self.conv1x1.bias)
        strips = weight @ strips + bias[:, None]
        weight, bias = upcast(self.conv3x3.weight).flatten(1), upcast(self.conv3x3.bias)
        p = upcast(self.gn.bias).softmax(0)
        q = (windows.flatten(1) @ weight.T + bias).softmax(1)  # (N G, C / G)
        kernel = (p @ weight).unflatten(0, (-1, 3, 3))
        return strips, q * self.gn.weight, kernel, p @ bias + q @ upcast(self.gn.bias)

    @recorded('group')
    def gate(self, x: Tensor, *branches: Tensor) -> Tensor:
        """(N, C, H, W) and its branches -> (N, G, H, W)."""
        z = cross_spatial_logits(x, self.groups, *branches, self.gn.eps)
        return self._sigmoid(z).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        with disable_autocast(x):
            branches = self.branches(x)
            if self._recorder is not None:
                self.gate(x, *branches)  # otherwise the gates are not kept
            factor = 2 if self.init == 'identity' else 1
            return cross_spatial(x, self.groups, *branches, self.gn.eps, factor)
