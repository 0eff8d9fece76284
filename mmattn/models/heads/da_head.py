"""DANet's decode head: parallel position and channel attention, each between 3x3 convolutions.

Source: Dual Attention Network for Scene Segmentation, CVPR 2019, arXiv 1809.02983, fig. 2.
Reference code: junfu1115/DANet, encoding/models/sseg/danet.py; open-mmlab/mmsegmentation,
    mmseg/models/decode_heads/da_head.py. Differs from the second in: the attention blocks are ours.
"""

from mmseg.models.decode_heads import DAHead as StockDAHead
from torch import Tensor

from mmattn.blocks import CAM, PAM
from mmattn.registry import MODELS


@MODELS.register_module()
class DAHead(StockDAHead):
    """Three classifiers: on the sum of both branches, on position, on channel attention.

    The state dict is that of MMSegmentation's `DAHead`.

    Args:
        pam_channels: channels of query and key of the position attention.
        **kwargs: arguments of `mmseg.models.DAHead`.
    """

    def __init__(self, pam_channels: int, **kwargs) -> None:
        super().__init__(pam_channels, **kwargs)
        self.pam = PAM(self.channels, pam_channels)
        self.cam = CAM(self.channels)

    def forward(self, inputs: Tensor | list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps of the backbone, or one map -> fused, position, channel logits."""
        return super().forward([inputs] if isinstance(inputs, Tensor) else inputs)
