"""Large selective kernel: each position weighs two depthwise convolutions of different reach.

Source: Large Selective Kernel Network for Remote Sensing Object Detection, ICCV 2023,
    arXiv 2303.09030.
Reference code: zcablii/LSKNet, mmrotate/models/backbones/lsknet.py. Differs from it in: one channel
    is refused in the constructor. As in the code, there are two kernels, in series; their weights
    are two sigmoids, which need not sum to 1.
"""

import torch
from torch import Tensor, nn

from mmattn.ops import first_max
from mmattn.registry import MODELS

from .base import recorded
from .layers.large_kernel import Conv, LargeKernelAttention


@MODELS.register_module()
class LSK(LargeKernelAttention):
    """y = x * (W (u1 * w1 + u2 * w2) + b), no sigmoid on the sum, so y is quadratic in x.

    u1 = W1 a1 and u2 = W2 a2 have C // 2 channels; a1 = dw5x5(x) sees 5 rows and columns,
    a2 = dw7x7(a1) with dilation 3 sees 23. The weights (w1, w2) = sigmoid(conv7x7 [mean_c u ;
    max_c u]), over the channels of both. All convolutions have biases.

    (N, C, H, W) -> same shape and dtype.

    Args:
        in_channels: C, from 2.
        project: whether y = x + P2 (z * response(z)), z = GELU(P1 x), as in the class `Attention`.
        init: 'paper' or 'identity' (W = 0 and b = 1, or P2 = 0).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'lsk'
    kind = 'channel, spatial'
    last = 'conv'
    keeps_response = False
    limits = dict(half='y is quadratic in x, so fp16 overflows where x is in the hundreds')
    examples = (dict(in_channels=16), dict(in_channels=7), dict(in_channels=6, project=True))

    def __init__(self, in_channels: int, *, project: bool = False, init: str = 'paper') -> None:
        super().__init__(in_channels, project, init)
        self._check(in_channels >= 2, f'{in_channels=}, allowed 2 and more')
        c, half = in_channels, in_channels // 2
        self.conv0 = nn.Conv2d(c, c, 5, padding=2, groups=c)
        self.conv_spatial = nn.Conv2d(c, c, 7, padding=9, groups=c, dilation=3)
        self.conv1 = nn.Conv2d(c, half, 1)
        self.conv2 = nn.Conv2d(c, half, 1)
        self.conv_squeeze = nn.Conv2d(2, 2, 7, padding=3)
        self.conv = nn.Conv2d(half, c, 1)
        self.start()

    @recorded('selection')
    def select(self, u1: Tensor, u2: Tensor, conv: Conv) -> Tensor:
        """(N, C // 2, H, W) twice -> their weights (N, 2, H, W), in (0, 1)."""
        mean = (u1.mean(1) + u2.mean(1)) / 2
        max1, max2 = first_max(u1, 1), first_max(u2, 1)
        largest = torch.where(max2 > max1, max2, max1)  # the gradient goes to the first of equals
        return conv('conv_squeeze', torch.stack([mean, largest], 1)).sigmoid()

    def features(self, x: Tensor, conv: Conv) -> Tensor:
        near = conv('conv0', x)
        u1, u2 = conv('conv1', near), conv('conv2', conv('conv_spatial', near))
        w1, w2 = self.select(u1, u2, conv).split(1, 1)  # (N, 1, H, W) each
        return u1 * w1 + u2 * w2
