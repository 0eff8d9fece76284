"""Criss-cross attention and its recurrence RCCA: context of the whole map from rows and columns.

Source: CCNet: Criss-Cross Attention for Semantic Segmentation, ICCV 2019, arXiv 1811.11721,
    eq. 1-2 and section 3.3 (recurrence).
Reference code: speedinghzl/CCNet, cc_attention/functions.py; open-mmlab/mmcv,
    mmcv/ops/cc_attention.py. Differs from both in: the recurrence is inside the module; half
    precision works; fewer than 8 channels are refused in the constructor, not in forward.
"""

from torch import Tensor, nn

from mmattn.ops import Pairs, criss_cross, residual_add
from mmattn.registry import MODELS

from .base import PairwiseBlock, recorded
from .layers.conv_norm_act import pointwise
from .layers.scale import Scale

_REDUCTION = 8  # query and key have C // 8 channels, section 4.1 of the paper


@MODELS.register_module()
class CrissCrossAttention(PairwiseBlock):
    """x <- gamma * criss_cross(W_q x, W_k x, W_v x) + x, `recurrence` times with the same weights.

    (N, C, H, W) -> same shape and dtype; N, H, W >= 1. `gamma` starts at 0, so a fresh block
    returns its input. The state dict is that of `mmcv.ops.CrissCrossAttention`.

    Args:
        in_channels: C, at least 8.
        recurrence: number of applications; 1 reaches row and column, 2 (RCCA) every pixel.
        init: 'paper' or 'identity'; the authors start as the identity, so they are the same.

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'criss_cross_attention'
    kind = 'pairwise, row and column'
    plugin_memory = 'keep'
    examples = (dict(in_channels=16), dict(in_channels=8, recurrence=2))
    without_effect = ('key_conv.bias',)  # adds the same to all logits of a query

    def __init__(self, in_channels: int, *, recurrence: int = 1, init: str = 'paper') -> None:
        super().__init__(in_channels, init)
        self._check(in_channels >= _REDUCTION, f'{in_channels=}, allowed {_REDUCTION} and more')
        self._check_whole(recurrence=recurrence)
        self.recurrence = recurrence
        self.query_conv = nn.Conv2d(in_channels, in_channels // _REDUCTION, 1)
        self.key_conv = nn.Conv2d(in_channels, in_channels // _REDUCTION, 1)
        self.value_conv = nn.Conv2d(in_channels, in_channels, 1)
        self.gamma = Scale(0)

    @recorded('pairwise', by='attention_map')
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The context of each pixel, times gamma as v is."""
        return criss_cross(q, k, v)

    def pairs(self, q: Tensor, k: Tensor, v: Tensor) -> Pairs:
        return Pairs('criss-cross', q, k)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        layers = self.query_conv, self.key_conv, self.value_conv
        for _ in range(self.recurrence):
            context = self.attend(*pointwise(x, layers, self.gamma.scale))
            x = residual_add(x, context)
        return x
