"""Dual attention: position attention and channel attention of one map, added to it.

Source: Dual Attention Network for Scene Segmentation, CVPR 2019, arXiv 1809.02983, fig. 2.
Reference code: junfu1115/DANet, encoding/nn/da_att.py. Differs from it in: the authors have
    convolutions around the two modules, which belong to their decode head, `mmattn.DAHead`.
"""

from torch import Tensor

from mmattn.ops import residual_add
from mmattn.registry import MODELS

from .base import AttentionBlock
from .cam import CAM
from .pam import PAM


@MODELS.register_module()
class DualAttention(AttentionBlock):
    """y = x + gamma_p * position context + gamma_c * channel context; see `PAM` and `CAM`.

    (N, C, H, W) -> same shape and dtype. Both gammas start at 0.

    Args:
        in_channels: C.
        channels: channels of query and key of the position attention; C // 8 if None.
        init: 'paper' or 'identity'; the authors start as the identity, so they are the same.

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'dual_attention'
    kind = 'pairwise, channel'
    plugin_memory = 'keep'
    examples = (dict(in_channels=16), dict(in_channels=6, channels=3))
    without_effect = ('pam.key_project.bias',)  # adds the same to all logits of a query

    def __init__(
        self, in_channels: int, *, channels: int | None = None, init: str = 'paper'
    ) -> None:
        super().__init__(in_channels, init)
        self.pam = PAM(in_channels, channels, init=init)
        self.cam = CAM(in_channels, init=init)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        return residual_add(self.cam(x), self.pam.context(x))
