"""Coordinate attention: each row and each column of a channel is gated by means along it.

Source: Coordinate Attention for Efficient Mobile Network Design, CVPR 2021, arXiv 2103.02907,
    eq. 4-9.
Reference code: houqb/CoordAttention, coordatt.py, mbv2_ca.py;
    huggingface/pytorch-image-models, timm/layers/coord_attn.py. Differs from them in: gates are
    computed in fp32; the map times one of the two gates is never stored. Three more modes are
    timm's, which publishes no paper for two of them; 'local' is after ELA: Efficient Local
    Attention for Deep Convolutional Neural Networks, arXiv 2403.01123, in timm's form.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.ops import disable_autocast, scale_by_product, scale_by_sigmoid, strip_means
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded, zero
from .layers.fp32 import conv_fp32, norm_fp32

_DEFAULTS = {  # mode: the arguments that have an effect, and their defaults
    'coordinate': dict(reduction=32, min_channels=8, bias=True),
    'simple': dict(reduction=6, min_channels=8, bias=True),
    'local': dict(kernel_size=7, bias=False),
    'strip': dict(kernel_size=3, bias=False),
}


@MODELS.register_module()
class CoordinateAttention(AttentionBlock):
    """y = x * sigmoid(rows(u_h)) * sigmoid(columns(u_w)), u = hardswish(BN(W [z_h ; z_w])).

    (N, C, H, W) -> same shape and dtype. z_h = mean_w x (N, C, H) and z_w = mean_h x (N, C, W) are
    joined along the positions, so one batch norm sees H + W values of each image. Other modes,
    the last two with depthwise convolutions along the strips:

    - 'simple': y = x * sigmoid(rows(silu(W z_h)) + columns(silu(W z_w)));
    - 'local': y = x * g(z_h) * g(z_w), g = sigmoid(silu(GN(conv(z)))), weights of its own each;
    - 'strip': y = x * sigmoid(conv(z_h) + conv(z_w)).

    Args:
        in_channels: C.
        mode: 'coordinate', the paper's; 'simple', 'local' or 'strip', timm's `SimpleCoordAttn`,
            `EfficientLocalAttn` (ELA) and `StripAttn`.
        reduction: C over the hidden width, in 1..C; 'coordinate' and 'simple' only, by default 32
            and 6, or C if that is less.
        min_channels: least hidden width; 'coordinate' and 'simple' only, by default 8.
        kernel_size: size of the depthwise convolutions, odd; 'local' and 'strip' only, by default 7
            and 3.
        bias: whether convolutions have biases; by default in 'coordinate' and 'simple'.
        init: 'paper' (gates near 0.5, so x / 4 where there are two) or 'identity' (logits 0, gates
            2 sigmoid).

    Raises:
        ValueError: an argument out of range, or without effect in this mode; an input other than
            (N, in_channels, H, W).
    """

    _abbr_ = 'coordinate_attention'
    kind = 'channel, by row and column'
    gated = True
    examples = (
        dict(in_channels=32),
        dict(in_channels=12, reduction=2, min_channels=2, bias=False),
        dict(in_channels=12, mode='simple', reduction=3),
        dict(in_channels=8, mode='local', kernel_size=5),
        dict(in_channels=8, mode='strip', bias=True),
    )

    def __init__(
        self,
        in_channels: int,
        *,
        mode: str = 'coordinate',
        reduction: int | None = None,
        min_channels: int | None = None,
        kernel_size: int | None = None,
        bias: bool | None = None,
        init: str = 'paper',
    ) -> None:
        super().__init__(in_channels, init)
        self._check_choice('mode', mode, tuple(_DEFAULTS))
        given = dict(
            reduction=reduction, min_channels=min_channels, kernel_size=kernel_size, bias=bias
        )
        for name, value in given.items():
            self._check(
                value is None or name in _DEFAULTS[mode],
                f'{name}={value!r} without effect with {mode=}, allowed None',
            )
        options = _DEFAULTS[mode] | {k: v for k, v in given.items() if v is not None}
        self._check_choice('bias', options['bias'], (True, False))
        self.mode = mode
        if 'reduction' in options:
            if reduction is None:
                options['reduction'] = min(options['reduction'], in_channels)
            self._build_pointwise(**options)
        else:
            self._build_depthwise(**options)
        self.start()

    def _build_pointwise(self, reduction: int, min_channels: int, bias: bool) -> None:
        channels = self.in_channels
        self._check_reduction(reduction, channels)
        self._check_whole(min_channels=min_channels)
        width = max(min_channels, channels // reduction)
        layers = OrderedDict(conv=nn.Conv2d(channels, width, 1, bias=bias))
        if self.mode == 'coordinate':
            layers['bn'] = nn.BatchNorm2d(width)
        self.reduce = nn.Sequential(layers)
        self.rows = nn.Conv2d(width, channels, 1, bias=bias)
        self.columns = nn.Conv2d(width, channels, 1, bias=bias)

    def _build_depthwise(self, kernel_size: int, bias: bool) -> None:
        channels = self.in_channels
        self._check_whole(kernel_size=kernel_size)
        self._check(kernel_size % 2 == 1, f'{kernel_size=}, allowed odd numbers')

        def branch() -> nn.Module:
            layers = OrderedDict(
                conv=nn.Conv1d(
                    channels,
                    channels,
                    kernel_size,
                    padding=kernel_size // 2,
                    groups=channels,
                    bias=bias,
                )
            )
            if self.mode == 'local':
                layers['gn'] = nn.GroupNorm(1, channels)
            return nn.Sequential(layers)

        self.rows, self.columns = branch(), branch()

    def start(self) -> None:
        if self.init == 'identity':
            for branch in self.rows, self.columns:
                zero(branch[-1] if self.mode in ('local', 'strip') else branch)

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> rows (N, C, H, 1) and columns (N, C, 1, W), in fp32 or wider."""
        rows, columns = strip_means(x)
        if self.mode in ('local', 'strip'):
            rows = _along(rows[..., 0], self.rows)[..., None]
            return rows, _along(columns[:, :, 0], self.columns)[:, :, None]
        u = conv_fp32(torch.cat([rows, columns.mT], 2), self.reduce.conv)  # (N, m, H + W, 1)
        if self.mode == 'simple':
            u = F.silu(u)
        else:
            u = F.hardswish(norm_fp32(u, self.reduce.bn))
        rows, columns = u.split([x.shape[2], x.shape[3]], 2)
        return conv_fp32(rows, self.rows), conv_fp32(columns, self.columns).mT

    @recorded('rows', view='_without_width')
    def rows_gate(self, logits: Tensor) -> Tensor:
        """(N, C, H, 1) -> the same, in (0, 1), with init='identity' in (0, 2)."""
        return self._sigmoid(logits)

    @recorded('columns', view='_without_height')
    def columns_gate(self, logits: Tensor) -> Tensor:
        """(N, C, 1, W) -> the same, in (0, 1), with init='identity' in (0, 2)."""
        return self._sigmoid(logits)

    @recorded('mask', view='_mask')
    def mask_logits(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The summands of the logits of 'simple' and 'strip', as they are."""
        return rows, columns

    def _without_width(self, rows: Tensor) -> Tensor:
        return rows[..., 0]

    def _without_height(self, columns: Tensor) -> Tensor:
        return columns[:, :, 0]

    def _mask(self, logits: tuple[Tensor, Tensor]) -> Tensor:
        rows, columns = logits
        return self._sigmoid(rows + columns)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        with disable_autocast(x):
            rows, columns = self.logits(x)
            if self.mode in ('simple', 'strip'):
                height = 2 if self.init == 'identity' else 1
                return scale_by_sigmoid(x, *self.mask_logits(rows, columns), height)
            return scale_by_product(x, self.rows_gate(rows), self.columns_gate(columns))


def _along(z: Tensor, branch: nn.Sequential) -> Tensor:
    """A depthwise convolution, and for 'local' norm and activation: (N, C, L) -> (N, C, L)."""
    z = conv_fp32(z, branch.conv)
    if len(branch) == 1:
        return z
    norm = branch.gn
    weight, bias = norm.weight.to(z.dtype), norm.bias.to(z.dtype)
    return F.silu(F.group_norm(z, norm.num_groups, weight, bias, norm.eps))
