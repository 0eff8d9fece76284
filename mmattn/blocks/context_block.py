"""Global context: a transformed context vector of the whole map is added to it or scales it.

Source: GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, ICCV workshops 2019,
    arXiv 1904.11492, eq. 5.
Reference code: xvjiarui/GCNet, mmdet/ops/gcb/context_block.py; open-mmlab/mmcv,
    mmcv/cnn/bricks/context_block.py. Differs from both in: the initialisation of the
    network does not overwrite its own; a ratio that leaves no channel is refused.
"""

import warnings

from torch import Tensor, nn

from mmattn.ops import context_pool
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded, zero
from .layers.conv_norm_act import kaiming_normal


@MODELS.register_module()
class ContextBlock(AttentionBlock):
    """y = x * sigmoid(t_mul(c)) + t_add(c), c the context; t = W2 relu(LN(W1 c + b1)) + b2.

    With pooling_type 'att', c = sum_p softmax_p(w_k . x[p] + b_k) x[p]; with 'avg', the mean.

    (N, C, H, W) -> same shape and dtype. Signature and state dict are those of MMCV's
    `ContextBlock`.

    Args:
        in_channels: C.
        ratio: hidden width over C (a factor, not a divisor); int(C * ratio) must be at least 1.
        pooling_type: 'att' or 'avg'.
        fusion_types: one or both of 'channel_add', 'channel_mul'; the latter acts first.
        init: 'paper' (last layers 0: add is the identity, mul halves) or 'identity' (the gate of
            mul is 2 sigmoid).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'context_block'
    kind = 'context'
    typical = dict(ratio=1 / 16)
    examples = (
        dict(in_channels=32, ratio=1 / 4),
        dict(in_channels=16, ratio=1 / 4, pooling_type='avg', fusion_types=('channel_mul',)),
        dict(in_channels=16, ratio=1 / 2, fusion_types=('channel_add', 'channel_mul')),
    )
    without_effect = ('conv_mask.bias',)  # the same for all positions: softmax removes it

    def __init__(
        self,
        in_channels: int,
        ratio: float,
        pooling_type: str = 'att',
        fusion_types: tuple[str, ...] = ('channel_add',),
        *,
        init: str = 'paper',
    ) -> None:
        super().__init__(in_channels, init)
        self._check_choice('pooling_type', pooling_type, ('avg', 'att'))
        fusion_types = (fusion_types,) if isinstance(fusion_types, str) else tuple(fusion_types)
        self._check(len(fusion_types) > 0, f'{fusion_types=}, allowed at least one')
        for kind in fusion_types:
            self._check_choice('fusion_types', kind, ('channel_add', 'channel_mul'))
        width = int(in_channels * ratio)
        self._check(width >= 1, f'{ratio=}, allowed from 1 / {in_channels=}')
        if width == 1:
            warnings.warn(
                f'ContextBlock: {ratio=} of {in_channels=} leaves one hidden channel, which the '
                'layer norm turns into a constant: the context has no effect.',
                stacklevel=2,
            )
        self.ratio, self.pooling_type, self.fusion_types = ratio, pooling_type, fusion_types
        if pooling_type == 'att':
            self.conv_mask = nn.Conv2d(in_channels, 1, 1)
        for kind in fusion_types:
            self.add_module(
                f'{kind}_conv',
                nn.Sequential(
                    nn.Conv2d(in_channels, width, 1),
                    nn.LayerNorm([width, 1, 1]),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(width, in_channels, 1),
                ),
            )
        self.start()

    @property
    def gated(self) -> bool:
        return 'channel_mul' in self.fusion_types

    def start(self) -> None:
        if self.pooling_type == 'att':
            kaiming_normal(self.conv_mask, 'fan_in')
        for kind in self.fusion_types:
            zero(self.get_submodule(f'{kind}_conv')[-1])

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return context_pool(x, self.conv_mask.weight, self.conv_mask.bias)

    @recorded('context', by='context_map')
    def context(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 1, 1)."""
        if self.pooling_type == 'avg':
            return x.mean((2, 3), keepdim=True)
        return self._pool(x)[0][:, :, None, None]

    def context_map(self, queries: Tensor, x: Tensor) -> Tensor:
        """The weights of the positions, (N, 1, H, W); the same for every query."""
        if self.pooling_type == 'avg':
            return x.new_full((x.shape[0], 1, *x.shape[2:]), 1 / x.shape[2:].numel())
        return self._pool(x)[1]

    @recorded('channel')
    def channel_gate(self, context: Tensor) -> Tensor:
        """(N, C, 1, 1) -> same shape."""
        return self._sigmoid(self.channel_mul_conv(context))

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        context, y = self.context(x), x
        if 'channel_mul' in self.fusion_types:
            y = y * self.channel_gate(context).to(x.dtype)
        if 'channel_add' in self.fusion_types:
            y = y + self.channel_add_conv(context).to(x.dtype)
        return y
