"""Squeeze-and-Excitation: scale each channel by a gate computed from the means of all channels.

Source: Squeeze-and-Excitation Networks, CVPR 2018, arXiv 1709.01507, eq. 2-4.
Reference code: hujie-frank/SENet, models/*.prototxt (with biases); moskomule/senet.pytorch,
    senet/se_module.py (without). Differs from both in: a reduction above the channels is refused.
"""

from torch import Tensor, nn

from mmattn.ops import channel_means, scale_channels
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded, zero
from .layers.channel_mlp import excite


@MODELS.register_module()
class SE(AttentionBlock):
    """y = x * sigmoid(W2 relu(W1 mean_hw(x) + b1) + b2).

    (N, C, H, W) -> same shape and dtype.

    Args:
        in_channels: C.
        reduction: C over the hidden width, in 1..C.
        bias: whether b1 and b2 exist.
        init: 'paper' (gates near 0.5) or 'identity' (W2, b2 = 0 and the gate is 2 sigmoid).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'se'
    kind = 'channel'
    gated = True
    examples = (dict(in_channels=32), dict(in_channels=24, reduction=4, bias=False))

    def __init__(
        self, in_channels: int, *, reduction: int = 16, bias: bool = True, init: str = 'paper'
    ) -> None:
        super().__init__(in_channels, init)
        self._check_reduction(reduction, in_channels)
        self.reduction, self.bias = reduction, bias
        self.fc1 = nn.Linear(in_channels, in_channels // reduction, bias=bias)
        self.fc2 = nn.Linear(in_channels // reduction, in_channels, bias=bias)
        self.start()

    def start(self) -> None:
        if self.init == 'identity':
            zero(self.fc2)

    @recorded('channel')
    def gate(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C), in (0, 1), with init='identity' in (0, 2)."""
        return self._sigmoid(excite(channel_means(x), self.fc1, self.fc2)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        return scale_channels(x, self.gate)
