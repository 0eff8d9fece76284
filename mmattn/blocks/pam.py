"""Position attention module: every position is a weighted sum of all, by similarity.

Source: Dual Attention Network for Scene Segmentation, CVPR 2019, arXiv 1809.02983, eq. 1-2.
Reference code: junfu1115/DANet, encoding/nn/da_att.py; open-mmlab/mmsegmentation,
    mmseg/models/decode_heads/da_head.py. Differs from both in: half precision does not overflow.
"""

from torch import Tensor, nn

from mmattn.ops import Pairs, residual_add, softmax_attention
from mmattn.registry import MODELS

from .base import PairwiseBlock, recorded
from .layers.conv_norm_act import pointwise
from .layers.scale import Scale

_REDUCTION = 8  # query and key have C // 8 channels, in the authors' code


@MODELS.register_module()
class PAM(PairwiseBlock):
    """y = gamma * sum_s softmax_s(q[p] . k[s]) v[s] + x; the logits are not scaled.

    The values are projected after the sum, which is equivalent, as the weights sum to 1.

    (N, C, H, W) -> same shape and dtype. `gamma` starts at 0. Arguments and state dict are those of
    MMSegmentation's `PAM`.

    Args:
        in_channels: C.
        channels: channels of query and key; C // 8 if None, for which C must be 8 and more.
        init: 'paper' or 'identity'; the authors start as the identity, so they are the same.

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'pam'
    kind = 'pairwise'
    plugin_memory = 'keep'
    examples = (dict(in_channels=16), dict(in_channels=6, channels=3))
    without_effect = ('key_project.bias',)  # adds the same to all logits of a query

    def __init__(
        self, in_channels: int, channels: int | None = None, *, init: str = 'paper'
    ) -> None:
        super().__init__(in_channels, init)
        if channels is None:
            self._check(
                in_channels >= _REDUCTION,
                f'{in_channels=} without channels, allowed {_REDUCTION} and more, or give channels',
            )
            channels = in_channels // _REDUCTION
        self._check_whole(channels=channels)
        self.query_project = nn.Conv2d(in_channels, channels, 1)
        self.key_project = nn.Conv2d(in_channels, channels, 1)
        self.value_project = nn.Conv2d(in_channels, in_channels, 1)
        self.gamma = Scale(0)

    @recorded('pairwise', by='attention_map')
    def attend(self, q: Tensor, k: Tensor, x: Tensor) -> Tensor:
        """The weighted mean of x for each pixel, before the projection of the values."""
        return softmax_attention(q.flatten(2), k.flatten(2), x.flatten(2)).unflatten(2, x.shape[2:])

    def pairs(self, q: Tensor, k: Tensor, x: Tensor) -> Pairs:
        return Pairs('softmax', q, k)

    def context(self, x: Tensor) -> Tensor:
        """gamma times the context, (N, C, H, W), in channels_last."""
        q, k = self.query_project(x), self.key_project(x)
        mean = self.attend(q, k, x.to(q.dtype))
        (context,) = pointwise(mean, [self.value_project], self.gamma.scale)
        return context

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        return residual_add(x, self.context(x))
