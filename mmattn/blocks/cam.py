"""Channel attention module: every channel is a weighted sum of all.

Source: Dual Attention Network for Scene Segmentation, CVPR 2019, arXiv 1809.02983, eq. 3-4.
Reference code: junfu1115/DANet, encoding/nn/da_att.py; open-mmlab/mmsegmentation,
    mmseg/models/decode_heads/da_head.py. Differs from both in: half precision does not overflow.
    As in the code, and unlike the paper, the least similar channels weigh most.
"""

from torch import Tensor

from mmattn.ops import channel_attention, channel_attention_weights
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded
from .layers.scale import Scale


@MODELS.register_module()
class CAM(AttentionBlock):
    """y = gamma * softmax(-X X^T) X + x, X the map as (C, H W).

    (N, C, H, W) -> same shape and dtype. `gamma`, the only parameter, starts at 0. The state dict
    is that of MMSegmentation's `CAM`.

    Args:
        in_channels: C, only to check the input; any number if None.
        init: 'paper' or 'identity'; the authors start as the identity, so they are the same.

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'cam'
    kind = 'channel, pairwise'
    plugin_memory = 'keep'
    examples = (dict(in_channels=8),)

    def __init__(self, in_channels: int | None = None, *, init: str = 'paper') -> None:
        super().__init__(1 if in_channels is None else in_channels, init)
        self.in_channels = in_channels
        self.gamma = Scale(0)

    @recorded('channel pairs', by='attention_map')
    def attend(self, x: Tensor, gamma: Tensor) -> Tensor:
        """gamma times the context of each channel, plus the channel: (N, C, P) -> same shape."""
        return channel_attention(x, gamma)

    def attention_map(self, queries: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
        """The weights of all channels for each channel, (N, C, C), whatever the queries."""
        return channel_attention_weights(x)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        return self.attend(x.flatten(2), self.gamma.scale).unflatten(2, x.shape[2:])
