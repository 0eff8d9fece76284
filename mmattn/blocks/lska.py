"""Large separable kernel attention: a map times a linear map of itself with a large kernel.

Source: Large Separable Kernel Attention: Rethinking the Large Kernel Attention Design in CNN,
    Expert Systems with Applications 2024, arXiv 2309.01439.
Reference code: StevenLauHKHK/Large-Separable-Kernel-Attention, models/van.py,
    mmdetection/mmdet/models/backbones/van.py, mmsegmentation/van.py. Differs from it in: further
    kernel sizes, by the rule that its own follow; all others are refused in the constructor.
"""

from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import recorded
from .layers.large_kernel import Conv, LargeKernelAttention

_FROM_DILATION_3 = 23  # the authors' kernels from here on have dilation 3, smaller ones 2


@MODELS.register_module()
class LSKA(LargeKernelAttention):
    """y = x * A, A = W D x + b; D is four depthwise convolutions in a row, each with a bias.

    They are 1 x a and a x 1 with a = 2 d - 1, then 1 x b and b x 1 with dilation d, and see
    a + d (b - 1) = kernel_size columns and rows. No sigmoid on A, so y is quadratic in x.

    (N, C, H, W) -> same shape and dtype.

    Args:
        in_channels: C.
        kernel_size: rows and columns that the depthwise convolutions see: 7, 11, 15, 17, 19, or
            6 n - 1 from 23 on; the authors use 7, 11, 23, 35, 41 and 53.
        project: whether y = x + P2 (z * A(z)), z = GELU(P1 x), as in the class `Attention`.
        init: 'paper' or 'identity' (W = 0 with bias 1, or P2 = 0).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'lska'
    kind = 'channel, spatial'
    last = 'conv1'
    keeps_response = True  # most of its cost is the 1x1 convolution
    limits = dict(half='y is quadratic in x, so fp16 overflows where x is in the hundreds')
    examples = (
        dict(in_channels=16),
        dict(in_channels=8, kernel_size=7),
        dict(in_channels=6, kernel_size=11, project=True),
    )

    def __init__(
        self,
        in_channels: int,
        *,
        kernel_size: int = 23,
        project: bool = False,
        init: str = 'paper',
    ) -> None:
        super().__init__(in_channels, project, init)
        self._check_whole(kernel_size=kernel_size)
        dilation = _dilation(kernel_size)
        self._check(
            dilation is not None,
            f'{kernel_size=}, allowed 7, 11, 15, 17, 19, 23, 29, 35, 41, 47, 53, by 6 from there',
        )
        self.kernel_size = kernel_size
        a, b = 2 * dilation - 1, kernel_size // dilation

        def depthwise(*kernel: int, dilation: int = 1) -> nn.Conv2d:
            return nn.Conv2d(
                in_channels,
                in_channels,
                kernel,
                padding='same',
                dilation=dilation,
                groups=in_channels,
            )

        self.conv0h, self.conv0v = depthwise(1, a), depthwise(a, 1)
        self.conv_spatial_h = depthwise(1, b, dilation=dilation)
        self.conv_spatial_v = depthwise(b, 1, dilation=dilation)
        self.conv1 = nn.Conv2d(in_channels, in_channels, 1)
        self.start()

    def features(self, x: Tensor, conv: Conv) -> Tensor:
        for name in 'conv0h', 'conv0v', 'conv_spatial_h', 'conv_spatial_v':
            x = conv(name, x)
        return x

    @recorded('response')
    def response(self, x: Tensor, conv: Conv) -> Tensor:
        return super().response(x, conv)


def _dilation(kernel_size: int) -> int | None:
    """d of a kernel k = (2 d - 1) + d (b - 1), with b = k // d odd and more than 1."""
    for dilation in (2, 3) if kernel_size < _FROM_DILATION_3 else (3,):
        if kernel_size % (2 * dilation) == 2 * dilation - 1 and kernel_size >= 3 * dilation:
            return dilation
    return None
