"""Criss-cross attention and its recurrence RCCA: context of the whole map from rows and columns.

Source: CCNet: Criss-Cross Attention for Semantic Segmentation, ICCV 2019, arXiv 1811.11721,
    eq. 1-2 and section 3.3 (recurrence).
Reference code: speedinghzl/CCNet, cc_attention/functions.py; open-mmlab/mmcv,
    mmcv/ops/cc_attention.py. Differs from both in: the recurrence is inside the module; half
    precision; at least 8 channels are demanded instead of failing in forward.
"""

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmattn.ops import criss_cross
from mmattn.registry import MODELS

from .scale import Scale

_REDUCTION = 8  # channels of query and key: C // 8, section 4.1 of the paper


@MODELS.register_module()
class CrissCrossAttention(BaseModule):
    """x <- gamma * criss_cross(W_q x, W_k x, W_v x) + x, `recurrence` times with the same weights.

    (N, C, H, W) -> same shape and dtype; N, H, W >= 1. `gamma` starts at 0, so a fresh block
    returns its input. The state dict is that of `mmcv.ops.CrissCrossAttention`.

    Args:
        in_channels: C, at least 8.
        recurrence: how often the block is applied; 1 reaches row and column, 2 (RCCA) every pixel.
        init: 'paper' or 'identity'; the authors start as the identity, so they are the same.

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'criss_cross_attention'

    def __init__(self, in_channels: int, *, recurrence: int = 1, init: str = 'paper') -> None:
        super().__init__()
        if in_channels < _REDUCTION:
            raise ValueError(f'CrissCrossAttention: {in_channels=}, allowed {_REDUCTION} and more')
        if recurrence < 1:
            raise ValueError(f'CrissCrossAttention: {recurrence=}, allowed 1 and more')
        if init not in ('paper', 'identity'):
            raise ValueError(f"CrissCrossAttention: {init=}, allowed 'paper', 'identity'")
        self.in_channels, self.recurrence, self.init = in_channels, recurrence, init
        self.query_conv = nn.Conv2d(in_channels, in_channels // _REDUCTION, 1)
        self.key_conv = nn.Conv2d(in_channels, in_channels // _REDUCTION, 1)
        self.value_conv = nn.Conv2d(in_channels, in_channels, 1)
        self.gamma = Scale(0)

    def reset_parameters(self) -> None:
        for part in self.query_conv, self.key_conv, self.value_conv, self.gamma:
            part.reset_parameters()

    def init_weights(self) -> None:
        first = not self.is_init
        super().init_weights()
        if first:  # the parent's initialisation has just run over ours
            self.reset_parameters()

    def attend(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the context of each pixel, (N, C, H, W), before gamma."""
        return criss_cross(self.query_conv(x), self.key_conv(x), self.value_conv(x))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'CrissCrossAttention: {tuple(x.shape)}, not (N, {self.in_channels}, H, W)'
            )
        for _ in range(self.recurrence):
            x = self.gamma(self.attend(x)).to(x.dtype) + x
        return x

    def extra_repr(self) -> str:
        return f'in_channels={self.in_channels}, recurrence={self.recurrence}'
