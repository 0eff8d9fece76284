"""Multi-head self-attention with relative positions, in place of a 3x3 convolution.

Source: Bottleneck Transformers for Visual Recognition, CVPR 2021,
    arXiv 2101.11605, fig. 4.
Reference code: huggingface/pytorch-image-models, timm/layers/bottleneck_attn.py, after a gist of
    the first author. Differs from it in: maps of any size, for which the tables of the positions
    are resampled; position='none'; no map over pairs is kept; with stride 2, a single row or column
    is not pooled; the position logits are scaled by default, as in the gist.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.ops import (
    Pairs,
    disable_autocast,
    match_memory_format,
    project,
    relative_attention,
    relative_pairs,
    resize_bilinear,
    softmax_attention,
    upcast,
)
from mmattn.registry import MODELS
from mmattn.torch_compat import HAS_OLD_EXPORT, is_compiling

from .base import PairwiseBlock, recorded
from .layers.conv_norm_act import foldable, pair
from .layers.scale import Scale

_SIZE = 14  # of the map that the authors replace convolutions at, for images of 224 pixels
_DIVISOR = 8  # of the channels of all heads together, in timm


@MODELS.register_module()
class MHSA(PairwiseBlock):
    """In each head, y[p] = sum_s softmax_s(q[p] . k[s] / sqrt(d) + t q[p] . (r + c)) v[s].

    r and c are learned vectors for the distance from p to s in rows and in columns, shared by the
    heads; t is 1 / sqrt(d), or 1. A 1x1 convolution gives q, k and v; the heads are concatenated,
    without a projection after them.

    (N, in_channels, H, W) -> (N, out_channels, H, W), or H // 2 and W // 2 with stride 2.

    Args:
        in_channels: C of the input.
        out_channels: C of the output; in_channels if None.
        heads: number of heads; divides out_channels.
        head_channels: d, channels of query and key in a head; if None, out_channels rounded to a
            multiple of 8, // heads.
        bias: whether the 1x1 convolution has a bias.
        position: 'relative', or 'none' for attention that does not depend on positions.
        size: (height, width) of the map that the tables of 'relative' are exact for, one number for
            both; 14 if None, stage 4 at stride 16 for images of 224 pixels. For other maps the
            tables are resampled linearly, so that distance 0 keeps its vector.
        scale_position: whether t is 1 / sqrt(d), as in the authors' gist, or 1, as in timm.
        stride: 1, or 2 for a 2x2 average pooling of the result, which drops an odd last row or
            column, but not the only one; (1, 1) and (2, 2) are the same.
        kernel_size, padding, dilation: those of a convolution that is replaced; without effect.
        init: 'paper', or 'identity': x + rho y, with rho learned from 0; needs equal channels and
            stride 1. In place of a convolution it is refused, as no weight could be taken over.

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'mhsa'
    kind = 'pairwise'
    plugin_memory = 'keep'
    examples = (
        dict(in_channels=16),
        dict(in_channels=12, heads=2, bias=True, size=(3, 9), scale_position=False),
        dict(in_channels=8, out_channels=12, heads=3, head_channels=5, size=6, stride=2),
        dict(in_channels=8, heads=1, position='none'),
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        heads: int = 4,
        head_channels: int | None = None,
        bias: bool = False,
        position: str = 'relative',
        size: int | tuple[int, int] | None = None,
        scale_position: bool = True,
        stride: int | tuple[int, int] = 1,
        kernel_size: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] | None = None,
        dilation: int | tuple[int, int] | None = None,
        init: str = 'paper',
    ) -> None:
        super().__init__(in_channels, init)
        out_channels = in_channels if out_channels is None else out_channels
        self._check_whole(out_channels=out_channels, heads=heads)
        if out_channels % heads:
            allowed = [n for n in range(1, out_channels + 1) if out_channels % n == 0][-6:]
            self._check(
                False,
                f'{heads=}, but heads must divide {out_channels=}; allowed '
                f'{", ".join(map(str, allowed))}',
            )
        if head_channels is None:
            head_channels = max(_divisible(out_channels) // heads, 1)
        self._check_whole(head_channels=head_channels)
        self._check_choice('position', position, ('relative', 'none'))
        self._check_choice('stride', pair(stride), ((1, 1), (2, 2)))
        self.stride = pair(stride)[0]
        if init == 'identity':
            self._check(
                out_channels == in_channels and self.stride == 1,
                f"{out_channels=} and {stride=} with init='identity', allowed "
                f'out_channels={in_channels} and stride=1',
            )
        self.out_channels, self.heads, self.head_channels = out_channels, heads, head_channels
        self.scale_position = scale_position
        self.qkv = nn.Conv2d(in_channels, 2 * heads * head_channels + out_channels, 1, bias=bias)
        if position == 'relative':
            sizes = pair(_SIZE if size is None else size)
            self._check(len(sizes) == 2, f'{size=}, allowed one number or (height, width)')
            for number in sizes:
                self._check_whole(size=number)
            self.position = RelativePosition(head_channels, *sizes)
        else:
            self._check(size is None, f"{size=} with position='none', allowed None")
            self._check(scale_position, f"{scale_position=} with position='none', allowed True")
            self.position = None
        if init == 'identity':
            self.rho = Scale(0)
        self.start()

    @property
    def limits(self) -> dict[str, str]:
        limits = {}
        if self.out_channels != self.in_channels or self.stride != 1:
            limits['identity'] = 'with other channels or stride 2 there is no identity'
            limits['plugin'] = 'with other channels or stride 2, it replaces a convolution'
        if self.stride == 2 and HAS_OLD_EXPORT:
            limits['export'] = 'with stride 2 and torch before 2.7, even H and W'
        return limits

    @property
    def dynamic_from(self) -> int:
        """Exporters fix the size of a map that pooling leaves with one pixel."""
        return 2 * self.stride

    def start(self) -> None:
        nn.init.trunc_normal_(self.qkv.weight, std=self.in_channels**-0.5)
        if self.qkv.bias is not None:
            nn.init.zeros_(self.qkv.bias)

    @property
    def scale(self) -> float:
        """Factor of the products of queries and keys."""
        return self.head_channels**-0.5

    @recorded('pairwise', by='attention_map')
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(N heads, d, H, W) twice, (N heads, C, H, W) -> (N heads, C, H, W)."""
        if self.position is None:
            y = softmax_attention(q.flatten(2), k.flatten(2), v.flatten(2), self.scale)
            return y.unflatten(2, v.shape[2:])
        return relative_attention(q, k, v, *self._positions(q))

    def pairs(self, q: Tensor, k: Tensor, v: Tensor) -> Pairs:
        if self.position is None:
            return Pairs('softmax', q, k, self.scale, heads=self.heads)
        return Pairs('softmax', *relative_pairs(q, k, *self._positions(q)), heads=self.heads)

    def _positions(self, q: Tensor) -> tuple[Tensor, Tensor, float, float]:
        """Tables for the size of a map, and the factors of both kinds of logits."""
        position_scale = self.scale if self.scale_position else 1.0
        return *self.position(*q.shape[2:]), self.scale, position_scale

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        qkv = self.qkv
        if is_compiling() or x.is_contiguous() or not foldable(qkv):
            y = qkv(x)
        else:  # a matrix product is faster than a convolution in channels_last
            y = project(x, qkv.weight.flatten(1), qkv.bias)
        width = self.heads * self.head_channels
        parts = y.split([width, width, self.out_channels], 1)
        y = self.attend(*(t.unflatten(1, (self.heads, -1)).flatten(0, 1) for t in parts))
        y = y.unflatten(0, (-1, self.heads)).flatten(1, 2)  # (N, C, H, W)
        if self.stride == 2:
            y = F.avg_pool2d(y, [min(2, n) for n in y.shape[2:]], 2)
        y = match_memory_format(y, x).to(x.dtype)
        return x + self.rho(y) if self.init == 'identity' else y


class RelativePosition(nn.Module):
    """Vectors for all distances between two rows, and between two columns, of a map.

    `height` is (2 H - 1, d), row H - 1 + i for a key i rows below the query; `width` the same for
    columns.

    Args:
        channels: d.
        height, width: H and W.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.empty(2 * height - 1, channels))
        self.width = nn.Parameter(torch.empty(2 * width - 1, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in self.height, self.width:
            nn.init.trunc_normal_(table, std=table.shape[1] ** -0.5)

    def forward(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Both tables for maps of another size, (2 H - 1, d) and (2 W - 1, d), in fp32 or wider."""
        return _resample(self.height, height), _resample(self.width, width)


def _resample(table: Tensor, size: int) -> Tensor:
    """(2 S0 - 1, d) -> (2 size - 1, d), linearly; the middle row stays in the middle."""
    if not is_compiling() and len(table) == 2 * size - 1:
        return upcast(table)
    with disable_autocast(table):
        rows = upcast(table).mT[None, :, :, None]  # (1, d, 2 S0 - 1, 1)
        return resize_bilinear(rows, 2 * size - 1, 1, align_corners=False)[0, :, :, 0].mT


def _divisible(channels: int) -> int:
    """The nearest multiple of 8, from 8 on, the next if that is below 90%: timm's rule."""
    nearest = max((channels + _DIVISOR // 2) // _DIVISOR * _DIVISOR, _DIVISOR)
    return nearest if nearest >= 0.9 * channels else nearest + _DIVISOR
