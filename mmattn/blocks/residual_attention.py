"""Residual attention module: a trunk, scaled by an hourglass mask branch.

Source: Residual Attention Network for Image Classification, CVPR 2017, arXiv 1704.06904, eq. 3 and
    fig. 2.
Reference code: fwang91/residual-attention-network (Caffe prototxts), for the data flow;
    tengshaofeng/ResidualAttentionNetwork-pytorch, Residual-Attention-Network/model/
    attention_module.py, class AttentionModule_pre. Differs from the second in: any map size; the
    shortcut convolution exists only where it is used; its other modules add the trunk once more.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.ops import resize_bilinear
from mmattn.registry import MODELS
from mmattn.torch_compat import HAS_OLD_EXPORT

from .base import AttentionBlock, recorded, zero
from .layers.scale import Scale

_BOTTLENECK = 4  # ratio of the channels of a unit to its inner width


class ResidualUnit(nn.Module):
    """Pre-activation bottleneck: y = conv3(a(conv2(a(conv1(a))))) + shortcut, a = relu(bn(.)).

    (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), rounded up. Where channels
    or size change, the shortcut is a 1x1 convolution of the activated input, else the input.

    Raises:
        ValueError: out_channels is no multiple of 4.
    """

    def __init__(self, in_channels: int, out_channels: int | None = None, stride: int = 1) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        if out_channels % _BOTTLENECK:
            raise ValueError(f'ResidualUnit: {out_channels=}, allowed multiples of {_BOTTLENECK}')
        width = out_channels // _BOTTLENECK
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.conv4 = None
        if in_channels != out_channels or stride != 1:
            self.conv4 = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = self.bn1(x).relu()
        y = self.conv2(self.bn2(self.conv1(a)).relu())
        y = self.conv3(self.bn3(y).relu())
        return y + (x if self.conv4 is None else self.conv4(a))


class _Gate(nn.Sequential):
    """conv2(relu(bn2(conv1(relu(bn1(x)))))), 1x1 without biases: the logits of the mask."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for k in 1, 2:
            self.add_module(f'bn{k}', nn.BatchNorm2d(channels))
            self.add_module(f'relu{k}', nn.ReLU(inplace=True))
            self.add_module(f'conv{k}', nn.Conv2d(channels, channels, 1, bias=False))


@MODELS.register_module()
class ResidualAttention(AttentionBlock):
    """y = post((1 + M) * T), T = trunk(pre(x)), M = sigmoid(gate(mask branch of pre(x))).

    The mask branch pools `depth` times by 2, with residual units between, and returns through
    bilinear interpolation to each size, where the output of a skip unit is added.

    (N, C, H, W) -> same shape and dtype.

    Args:
        in_channels: C, a multiple of 4.
        depth: number of poolings of the mask branch, from 1; the authors' stages have 3, 2, 1.
        p: number of units before and after, from 1.
        t: number of units of the trunk, from 1.
        r: number of units between two poolings, from 1; 2 r at the bottom.
        init: 'paper' or 'identity' (last convolutions of pre, trunk and post 0; the mask is scaled
            by rho, learned from 0).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W); training
            on one image so small that pooling leaves one pixel.
    """

    _abbr_ = 'residual_attention'
    kind = 'spatial and channel'
    plugin_memory = 'keep'
    limits = dict(export='with torch before 2.7, even H and W') if HAS_OLD_EXPORT else {}
    typical = dict(depth=1)
    examples = (
        dict(in_channels=4, depth=2, t=1),
        dict(in_channels=8, depth=1, p=2, r=2),
        dict(in_channels=4, depth=3),
    )

    def __init__(
        self,
        in_channels: int,
        *,
        depth: int,
        p: int = 1,
        t: int = 2,
        r: int = 1,
        init: str = 'paper',
    ) -> None:
        super().__init__(in_channels, init)
        self._check(
            in_channels % _BOTTLENECK == 0, f'{in_channels=}, allowed multiples of {_BOTTLENECK}'
        )
        self._check_whole(depth=depth, p=p, t=t, r=r)
        self.depth = depth

        def units(count: int) -> nn.Sequential:
            return nn.Sequential(*(ResidualUnit(in_channels) for _ in range(count)))

        between = range(depth - 1)
        self.pre, self.trunk, self.post = units(p), units(t), units(p)
        self.down = nn.ModuleList(units(r) for _ in between)
        self.skip = nn.ModuleList(ResidualUnit(in_channels) for _ in between)
        self.bottom = units(2 * r)
        self.up = nn.ModuleList(units(r) for _ in between)
        self.gate = _Gate(in_channels)
        if init == 'identity':
            self.rho = Scale(0)
        self.start()

    @property
    def dynamic_from(self) -> int:
        """Exporters fix the size of a map that pooling leaves with one pixel."""
        return 2**self.depth + 1

    def start(self) -> None:
        if self.init == 'identity':
            for unit in (*self.pre, *self.trunk, *self.post):
                zero(unit.conv3)

    @recorded('mask')
    def mask(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> same shape, in (0, 1)."""
        levels, e = [x], x  # maps of the way down, for their sizes on the way up
        for down in self.down:
            e = down(_pool(e))
            levels.append(e)
        b = self.bottom(_pool(e))
        for k in range(self.depth - 1, 0, -1):
            b = self.up[k - 1](_resize(b, levels[k]) + self.skip[k - 1](levels[k]))
        return self.gate(_resize(b, x)).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        step = 2**self.depth  # checked before running statistics are updated
        self._check_batch(self.gate.bn1, x[:, :, ::step, ::step], 'a batch norm of the pooled map')
        start = self.pre(x)
        mask = self.mask(start)
        if self.init == 'identity':
            mask = self.rho(mask)
        return self.post((1 + mask) * self.trunk(start)).to(x.dtype)


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2, 1)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return resize_bilinear(x, *like.shape[2:])
