"""Triplet attention: three gates, each on the image that pooling along one of the axes leaves.

Source: Rotate to Attend: Convolutional Triplet Attention Module, WACV 2021, arXiv 2010.03045,
    section 3.2.
Reference code: landskape-ai/triplet-attention, triplet_attention.py, MODELS/triplet_attention.py.
    Differs from them in: the map is not permuted, only its pooled images are; gates are computed in
    fp32; any odd kernel size, where theirs is a constant of the file; the start of their ResNet
    is the block's own.
"""

import torch
from torch import Tensor, nn

from mmattn.ops import disable_autocast, max_mean_strips, same_conv, scale_by_sum
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded
from .layers.conv_norm_act import ConvNormAct
from .layers.fp32 import norm_fp32

_MOMENTUM = 0.01  # momentum of the batch norms, in the authors' code


@MODELS.register_module()
class TripletAttention(AttentionBlock):
    """y = x * (g(x, H) + g(x, W) + g(x, C)) / 3, g(x, d) = sigmoid(BN(conv([max_d x ; mean_d x]))).

    (N, C, H, W) -> same shape and dtype. The images, of two channels, are (C, W), (H, C) and
    (H, W), so two of the convolutions slide over the channels.

    Args:
        in_channels: C.
        kernel_size: side of the kernels, odd.
        spatial: whether there is the gate over (H, W); without it y is the mean over two gates.
        init: 'paper' (as in the authors' ResNet: gates near 0.5, the norm's weight of the gate over
            (H, W) 0, so this is 0.5 everywhere) or 'identity' (norms 0, gates 2 sigmoid).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'triplet_attention'
    kind = 'channel and spatial, by pairs of axes'
    gated = True
    examples = (
        dict(in_channels=16),
        dict(in_channels=12, kernel_size=3, spatial=False),
    )

    def __init__(
        self, in_channels: int, *, kernel_size: int = 7, spatial: bool = True, init: str = 'paper'
    ) -> None:
        super().__init__(in_channels, init)
        self._check_whole(kernel_size=kernel_size)
        self._check(kernel_size % 2 == 1, f'{kernel_size=}, allowed odd numbers')
        self._check_choice('spatial', spatial, (True, False))
        self.kernel_size, self.has_spatial = kernel_size, spatial
        self.cw, self.hc = self._gate_layers(), self._gate_layers()
        if spatial:
            self.hw = self._gate_layers()
        self.start()

    def _gate_layers(self) -> ConvNormAct:
        norm = dict(type='BN', momentum=_MOMENTUM)
        size = self.kernel_size
        return ConvNormAct(2, 1, size, padding=size // 2, norm_cfg=norm)

    def start(self) -> None:
        layers = [self.hw] if self.has_spatial else []
        if self.init == 'identity':
            layers += [self.cw, self.hc]
        for layer in layers:
            nn.init.zeros_(layer.bn.weight)

    @recorded('columns', view='_without_height')
    def columns_gate(self, maxima: Tensor, means: Tensor) -> Tensor:
        """Pooled along H: two (N, C, 1, W) -> (N, C, 1, W), in (0, 1) or (0, 2)."""
        image = torch.cat([maxima, means], 2).transpose(1, 2)  # (N, 2, C, W)
        return self._gate(image, self.cw).transpose(1, 2)

    @recorded('rows', view='_without_width')
    def rows_gate(self, maxima: Tensor, means: Tensor) -> Tensor:
        """Pooled along W: two (N, C, H, 1) -> (N, C, H, 1), in (0, 1) or (0, 2)."""
        image = torch.cat([maxima, means], 3).transpose(1, 3)  # (N, 2, H, C)
        return self._gate(image, self.hc).transpose(1, 3)

    @recorded('spatial')
    def spatial_gate(self, maxima: Tensor, means: Tensor) -> Tensor:
        """Pooled along C: two (N, 1, H, W) -> (N, 1, H, W), in (0, 1) or (0, 2)."""
        return self._gate(torch.cat([maxima, means], 1), self.hw)

    def _gate(self, image: Tensor, layers: ConvNormAct) -> Tensor:
        """(N, 2, A, B) -> (N, 1, A, B)."""
        z = same_conv(image, layers.conv.weight.to(image.dtype))
        return self._sigmoid(norm_fp32(z, layers.norm))

    def _without_height(self, columns: Tensor) -> Tensor:
        return columns[:, :, 0]

    def _without_width(self, rows: Tensor) -> Tensor:
        return rows[..., 0]

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        self._check_batch(
            self.cw.norm, x.transpose(1, 2), 'the batch norm of the gate over C and W'
        )
        self._check_batch(
            self.hc.norm, x.transpose(1, 3), 'the batch norm of the gate over H and C'
        )
        if self.has_spatial:
            self._check_batch(self.hw.norm, x, 'the batch norm of the gate over H and W')
        gates = [self.columns_gate, self.rows_gate, self.spatial_gate][: 2 + self.has_spatial]
        with disable_autocast(x):
            pooled = max_mean_strips(x, (2, 3, 1)[: len(gates)])
            strips = [gate(*pair) for gate, pair in zip(gates, pooled, strict=True)]
            # equals the mean of the gates, and is exactly 1 where all are
            strips = [(strip - 1) / len(strips) for strip in strips]
            return scale_by_sum(x, 1 + strips[0], *strips[1:])
