"""Asymmetric pyramid non-local block: every position attends to 110 pooled ones, not to all.

Source: Asymmetric Non-local Neural Networks for Semantic Segmentation, ICCV 2019,
    arXiv 1908.07678, section 3.2.
Reference code: MendelXu/ANN, models/seg/utils/apnb.py; open-mmlab/mmsegmentation,
    mmseg/models/decode_heads/ann_head.py. Differs from the first in: no convolution bias before a
    norm, no dropout inside; from both in: query scales above 1 work.
"""

from collections.abc import Sequence

from torch import Tensor

from mmattn.registry import MODELS

from .layers.asymmetric import AsymmetricBlock

_BN, _RELU = dict(type='BN'), dict(type='ReLU')


@MODELS.register_module()
class APNB(AsymmetricBlock):
    """y = act(norm(W [W_o softmax(q^T pool(q) / sqrt(d)) pool(v) ; x])), q = act(norm(W_q x)).

    (N, in_channels, H, W) -> (N, out_channels, H, W). Arguments and state dict are those of
    MMSegmentation's `APNB`. Query and key projection are one module, run once; the running
    statistics of its norm are updated as by the two runs of MMSegmentation.

    Args:
        in_channels: C.
        channels: d; C // 2 if None.
        out_channels: channels of the result; C if None.
        query_scales: one stage each; queries are max-pooled by it, and contexts interpolated back.
        key_pool_scales: n of each n x n grid of pooled keys and values.
        conv_cfg, norm_cfg, act_cfg: configs of projections and bottleneck, see `ConvNormAct`.
        init: 'paper' (W_o = 0) or 'identity' (W_o drawn, x + rho * block(x), rho learned from 0).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'apnb'
    share_key_query, bottleneck_act = True, True
    examples = (
        dict(in_channels=8),
        dict(in_channels=8, channels=4, norm_cfg=None, key_pool_scales=(1, 2)),
    )

    def __init__(
        self,
        in_channels: int,
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
        self._check_whole(in_channels=in_channels)
        super().__init__(
            in_channels,
            in_channels,
            in_channels // 2 if channels is None else channels,
            in_channels if out_channels is None else out_channels,
            query_scales,
            key_pool_scales,
            conv_cfg,
            norm_cfg,
            act_cfg,
            init,
        )

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        return self.fuse(x, x)
