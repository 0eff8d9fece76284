"""ANN's decode head: asymmetric fusion of two stages, a 3x3 convolution, asymmetric pyramid.

Source: Asymmetric Non-local Neural Networks for Semantic Segmentation, ICCV 2019,
    arXiv 1908.07678, fig. 2.
Reference code: MendelXu/ANN, models/seg/nets/annnet.py; open-mmlab/mmsegmentation,
    mmseg/models/decode_heads/ann_head.py. Differs from the second in: the blocks are ours, so query
    scales above 1 work; `dropout_ratio=0` works.
"""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor

from mmattn.blocks import AFNB, APNB
from mmattn.registry import MODELS


@MODELS.register_module()
class ANNHead(BaseDecodeHead):
    """AFNB of two feature maps -> dropout -> conv3x3 -> APNB -> classifier.

    The state dict is that of MMSegmentation's `ANNHead`.

    Args:
        project_channels: channels of queries, keys and values in both blocks.
        query_scales, key_pool_scales: arguments of both blocks, see `mmattn.APNB`.
        **kwargs: arguments of `mmseg.models.decode_heads.decode_head.BaseDecodeHead`;
            `in_channels` and `in_index` have two entries, the lower map first, of any two sizes.

    Raises:
        ValueError: not two maps, or an argument that the blocks refuse.
    """

    def __init__(
        self,
        project_channels: int,
        query_scales: Sequence[int] = (1,),
        key_pool_scales: Sequence[int] = (1, 3, 6, 8),
        **kwargs,
    ) -> None:
        for name in 'in_channels', 'in_index':
            value = kwargs.get(name)
            if not isinstance(value, Sequence) or len(value) != 2:
                raise ValueError(f'ANNHead: {name}={value!r}, allowed two, of the lower map first')
        super().__init__(input_transform='multiple_select', **kwargs)
        low, high = self.in_channels
        options = dict(conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        scales = dict(query_scales=query_scales, key_pool_scales=key_pool_scales)
        self.fusion = AFNB(low, high, project_channels, **scales, **options)
        self.bottleneck = ConvModule(high, self.channels, 3, padding=1, **options)
        self.context = APNB(self.channels, project_channels, **scales, **options)

    def _forward_feature(self, inputs: list[Tensor]) -> Tensor:
        """Feature maps of the backbone -> (N, channels, H, W), the input of the classifier."""
        low, high = self._transform_inputs(inputs)
        fused = self.fusion(low, high)
        if self.dropout is not None:
            fused = self.dropout(fused)
        return self.context(self.bottleneck(fused))

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Feature maps of the backbone -> (N, num_classes, H, W) logits, the size of the higher."""
        return self.cls_seg(self._forward_feature(inputs))
