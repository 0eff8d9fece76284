"""CCNet's decode head: two 3x3 convolutions with recurrent criss-cross attention between them.

Source: CCNet: Criss-Cross Attention for Semantic Segmentation, ICCV 2019, arXiv 1811.11721, fig. 2.
Reference code: open-mmlab/mmsegmentation, mmseg/models/decode_heads/cc_head.py. Differs from it in:
    no compiled operator is needed, half precision works.
"""

from torch import Tensor

from mmattn.blocks import CrissCrossAttention
from mmattn.registry import MODELS

from .attention_head import AttentionHead


@MODELS.register_module()
class CCHead(AttentionHead):
    """conv3x3 -> RCCA -> conv3x3 -> [concat with input, conv3x3] -> classifier.

    The state dict is that of MMSegmentation's `CCHead`.

    Args:
        recurrence: number of applications of criss-cross attention, with the same weights; with the
            paper's 2 every pixel attends to every other. For none, use `FCNHead`.
        **kwargs: arguments of `mmseg.models.FCNHead`, except `num_convs`, which is 2.

    Raises:
        ValueError: recurrence below 1, or fewer than 8 channels.
    """

    def __init__(self, recurrence: int = 2, **kwargs) -> None:
        super().__init__(**kwargs)
        self.recurrence = recurrence
        self.cca = CrissCrossAttention(self.channels, recurrence=recurrence)

    def attend(self, x: Tensor) -> Tensor:
        return self.cca(x)
