"""Competitive inner-imaging squeeze and excitation: one gate from residual and identity.

Source: Competitive Inner-Imaging Squeeze and Excitation for Residual Network, 2018,
    arXiv 1807.08920, section 3.
Reference code: scut-aitcm/CompetitiveSENet, src/block/cmpese_wrn_block.py and
    cmpese_resnetv2_block.py (MXNet). Differs from them in: any reduction, channel count and fold
    that the views allow. The fold of the ResNet file with height k is ours with height C / k.
"""

import torch
from torch import Tensor, nn

from mmattn.ops import channel_means, scale_channels
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded, zero
from .layers.channel_mlp import linear_fp32
from .layers.conv_norm_act import ConvNormAct

_KERNELS = {'pair1x1': (1, 1), 'pair2x1': (1, 2), 'fold3x3': (3, 3)}  # height, width


@MODELS.register_module()
class CMPESE(AttentionBlock):
    """y = u * s + x, u a residual branch and x its identity; s comes from the means of both.

    'double_fc': s = sigmoid(W [relu(W_u mean(u)) ; relu(W_x mean(x))]). The other views arrange the
    two rows of means as an image, convolve it to C // reduction maps, normalise them, and average
    the maps to a vector f; s = sigmoid(W2 relu(W1 f)).

    (N, C, H, W) twice -> same shape and dtype. It replaces the residual addition.

    Args:
        in_channels: C of both inputs.
        reduction: C over the hidden width and over the number of maps, in 1..C.
        view: 'double_fc', 'pair1x1', 'pair2x1' or 'fold3x3'.
        fold_height: the image of 'fold3x3' has 2 fold_height rows and C / fold_height columns.
        init: 'paper' (gates near 0.5) or 'identity' (last layer 0, gate 2 sigmoid: y = u + x).

    Raises:
        ValueError: an argument out of range; inputs other than two of (N, in_channels, H, W).
    """

    _abbr_ = 'cmpese'
    kind = 'channel'
    gated = True
    limits = dict(plugin='needs residual and identity; no stock position has both')
    examples = (
        dict(in_channels=32),
        dict(in_channels=16, reduction=4, view='double_fc'),
        dict(in_channels=16, reduction=4, view='pair2x1'),
        dict(in_channels=16, reduction=4, view='fold3x3', fold_height=4),
    )

    def __init__(
        self,
        in_channels: int,
        *,
        reduction: int = 16,
        view: str = 'pair1x1',
        fold_height: int = 10,
        init: str = 'paper',
    ) -> None:
        super().__init__(in_channels, init)
        self._check_reduction(reduction, in_channels)
        self._check_choice('view', view, ('double_fc', *_KERNELS))
        self._check_whole(fold_height=fold_height)
        self.reduction, self.view, self.fold_height = reduction, view, fold_height
        hidden = in_channels // reduction
        if view == 'double_fc':
            self.fc_residual = nn.Linear(in_channels, hidden, bias=False)
            self.fc_identity = nn.Linear(in_channels, hidden, bias=False)
            self.fc_gate = nn.Linear(2 * hidden, in_channels, bias=False)
        else:
            self.maps = ConvNormAct(1, hidden, _KERNELS[view], norm_cfg=dict(type='BN'))
            self.fc1 = nn.Linear(self._view_size(), hidden, bias=False)
            self.fc2 = nn.Linear(hidden, in_channels, bias=False)
        self.start()

    def _view_size(self) -> int:
        """Length of f."""
        if self.view != 'fold3x3':
            return self.in_channels * (2 if self.view == 'pair1x1' else 1)
        rows, columns = 2 * self.fold_height, self.in_channels // self.fold_height
        allowed = [
            n
            for n in range(2, self.in_channels // 3 + 1)
            if self.in_channels % n == 0  # at least 3 rows and 3 columns for the 3x3 kernel
        ]
        self._check(
            self.fold_height in allowed,
            f'fold_height={self.fold_height} with in_channels={self.in_channels}, '
            f'allowed {", ".join(map(str, allowed)) or "none: more channels are needed"}',
        )
        return (rows - 2) * (columns - 2)

    def start(self) -> None:
        if self.init == 'identity':
            zero(self.fc_gate if self.view == 'double_fc' else self.fc2)

    def input_shapes(self, batch: int, height: int, width: int) -> list[tuple[int, ...]]:
        return 2 * super().input_shapes(batch, height, width)

    def identity(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]

    @recorded('channel')
    def gate(self, residual: Tensor, identity: Tensor) -> Tensor:
        """(N, C, H, W) twice -> (N, C)."""
        u, x = channel_means(residual), channel_means(identity)  # (N, C)
        if self.view == 'double_fc':
            hidden = [linear_fp32(u, self.fc_residual), linear_fp32(x, self.fc_identity)]
            z = linear_fp32(torch.cat(hidden, 1).relu(), self.fc_gate)
        else:
            z = linear_fp32(linear_fp32(self._image(u, x), self.fc1).relu(), self.fc2)
        return self._sigmoid(z).to(residual.dtype)

    def _image(self, u: Tensor, x: Tensor) -> Tensor:
        """Means of the residual and the identity, (N, C) twice -> f (N, length)."""
        pairs = torch.stack([u, x], dim=1)  # (N, 2, C)
        if self.view == 'pair1x1':  # the same transposed, with gradients of adjacent channels
            return self.maps(pairs[:, None]).mean(1).mT.flatten(1)
        image = pairs.mT
        if self.view == 'fold3x3':
            rows = pairs.unflatten(2, (self.fold_height, -1)).transpose(1, 2)
            image = rows.flatten(1, 2)  # (N, 2 height, C / height)
        return self.maps(image[:, None]).mean(1).flatten(1)

    def forward(self, residual: Tensor, identity: Tensor) -> Tensor:
        self._check_input(residual, name='residual')
        self._check_input(identity, name='identity')
        self._check(
            residual.shape == identity.shape,
            f'residual {tuple(residual.shape)} and identity {tuple(identity.shape)} must be equal',
        )
        return scale_channels(residual, lambda u: self.gate(u, identity), identity)
