"""Asymmetric fusion non-local block: a high-level map attends to pooled positions of a lower one.

Source: Asymmetric Non-local Neural Networks for Semantic Segmentation, ICCV 2019,
    arXiv 1908.07678, section 3.3.
Reference code: MendelXu/ANN, models/seg/utils/afnb.py; open-mmlab/mmsegmentation,
    mmseg/models/decode_heads/ann_head.py. Differs from the first in: no convolution bias before a
    norm, no dropout inside; from both in: query scales above 1 work.
"""

from collections.abc import Sequence

from torch import Tensor

from mmattn.registry import MODELS

from .layers.asymmetric import AsymmetricBlock

_BN, _RELU = dict(type='BN'), dict(type='ReLU')


@MODELS.register_module()
class AFNB(AsymmetricBlock):
    """y = norm(W [W_o softmax(q^T pool(k) / sqrt(d)) pool(v) ; high]), q from high, k, v from low.

    (N, low_in_channels, h, w), (N, high_in_channels, H, W) -> (N, out_channels, H, W). Arguments
    and state dict are those of MMSegmentation's `AFNB`.

    Args:
        low_in_channels: C of the lower map, which gives keys and values.
        high_in_channels: C of the higher map, which gives queries; low_in_channels if None.
        channels: d; high_in_channels // 2 if None.
        out_channels: C of the result; high_in_channels if None.
        query_scales: one stage each; queries are max-pooled by it, and contexts interpolated back.
        key_pool_scales: n of each n x n grid of pooled keys and values.
        conv_cfg, norm_cfg, act_cfg: configs of the projections, see `ConvNormAct`; the bottleneck
            has no activation.
        init: 'paper' (W_o = 0) or 'identity' (W_o drawn, high + rho * block, rho learned from 0).

    Raises:
        ValueError: an argument out of range; inputs of other shapes.
    """

    _abbr_ = 'afnb'
    share_key_query, bottleneck_act = False, False
    limits = dict(plugin='needs two maps; a position of a residual block has one')
    examples = (
        dict(in_channels=8),
        dict(in_channels=6, high_in_channels=8, channels=4, norm_cfg=None, key_pool_scales=(1, 2)),
    )

    def __init__(
        self,
        low_in_channels: int,
        high_in_channels: int | None = None,
        channels: int | None = None,
        out_channels: int | None = None,
        query_scales: Sequence[int] = (1,),
        key_pool_scales: Sequence[int] = (1, 3, 6, 8),
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = _BN,
        act_cfg: dict | None = _RELU,
        *,
        init: str = 'paper',
    ) -> None:
        self._check_whole(low_in_channels=low_in_channels)
        high = low_in_channels if high_in_channels is None else high_in_channels
        self._check_whole(high_in_channels=high)
        super().__init__(
            low_in_channels,
            high,
            high // 2 if channels is None else channels,
            high if out_channels is None else out_channels,
            query_scales,
            key_pool_scales,
            conv_cfg,
            norm_cfg,
            act_cfg,
            init,
        )

    def input_shapes(self, batch: int, height: int, width: int) -> list[tuple[int, ...]]:
        """The lower map is larger by one pixel each way, to have another size."""
        low, high = self.in_channels, self.high_in_channels
        return [(batch, low, height + 1, width + 1), (batch, high, height, width)]

    def identity(self, *inputs: Tensor) -> Tensor:
        return inputs[1]

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        self._check_input(low, name='low')
        self._check_input(high, self.high_in_channels, name='high')
        return self.fuse(high, low)
