"""Non-local decode head: two 3x3 convolutions with a non-local block between them.

Source: Non-local Neural Networks, CVPR 2018, arXiv 1711.07971, eq. 1-6.
Reference code: open-mmlab/mmsegmentation, mmseg/models/decode_heads/nl_head.py. Differs from it in:
    the block is ours, so 'concatenation' can be trained and half precision does not overflow.
"""

from torch import Tensor

from mmattn.blocks import NonLocal2d
from mmattn.registry import MODELS

from .attention_head import AttentionHead


@MODELS.register_module()
class NLHead(AttentionHead):
    """conv3x3 -> non-local -> conv3x3 -> [concat with input, conv3x3] -> classifier.

    The state dict is that of MMSegmentation's `NLHead`.

    Args:
        reduction, use_scale, mode: arguments of `mmattn.NonLocal2d`.
        **kwargs: arguments of `mmseg.models.FCNHead`, except `num_convs`, which is 2.

    Raises:
        ValueError: an argument that `mmattn.NonLocal2d` refuses.
    """

    def __init__(
        self,
        reduction: int = 2,
        use_scale: bool = True,
        mode: str = 'embedded_gaussian',
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.nl_block = NonLocal2d(
            self.channels,
            conv_cfg=self.conv_cfg,
            reduction=reduction,
            use_scale=use_scale,
            norm_cfg=self.norm_cfg,
            mode=mode,
        )

    def attend(self, x: Tensor) -> Tensor:
        return self.nl_block(x)
