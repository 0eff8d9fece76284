"""Bottleneck attention module: channel and spatial logits, fused before one sigmoid.

Source: BAM: Bottleneck Attention Module, BMVC 2018, arXiv 1807.06514, eq. 1-4.
Reference code: Jongchan/attention-module, MODELS/bam.py. Differs from it in: the mean is over the
    whole map (the code pools a square of the height of the map); the paper's sum of the logits is
    the default; the code's product is an option.
"""

from torch import Tensor, nn

from mmattn.ops import channel_means, scale_by_fused_sigmoid
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded, zero
from .layers.channel_mlp import ChannelMLP, linear_fp32
from .layers.conv_norm_act import ConvNormAct, kaiming_normal

_NORM, _ACT = dict(type='BN'), dict(type='ReLU')


@MODELS.register_module()
class BAM(AttentionBlock):
    """y = x * (1 + sigmoid(fusion(M_c, M_s))).

    M_c = W2 relu(BN(W1 mean_hw(x) + b1)) + b2, (N, C, 1, 1). M_s: 1x1 to C / reduction, dilated 3x3
    convolutions, each with BN and ReLU, and 1x1 to (N, 1, H, W); all with biases.

    (N, C, H, W) -> same shape and dtype. Recordings hold the logits M_c and M_s.

    Args:
        in_channels: C.
        reduction: C over the width of both branches, in 1..C.
        num_convs: number of dilated 3x3 convolutions, from 1.
        dilation: their dilation, in pixels.
        fusion: 'add' (the paper) or 'mul' (the authors' code).
        init: 'paper' (y near 1.5 x) or 'identity' (last layers 0 and 0.5 in place of 1; with 'mul'
            only the last spatial layer, as two zeros would never learn).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W); training
            with batch size 1, where the norm over the pooled vector would see one value.
    """

    _abbr_ = 'bam'
    kind = 'channel, spatial'
    gated = True
    limits = dict(training_on_one_image='the norm of the channel branch sees one value per channel')
    examples = (
        dict(in_channels=32, reduction=8),
        dict(in_channels=16, reduction=4, fusion='mul'),
        dict(in_channels=16, reduction=4, num_convs=1, dilation=2),
    )

    def __init__(
        self,
        in_channels: int,
        *,
        reduction: int = 16,
        num_convs: int = 2,
        dilation: int = 4,
        fusion: str = 'add',
        init: str = 'paper',
    ) -> None:
        super().__init__(in_channels, init)
        self._check_reduction(reduction, in_channels)
        self._check_whole(num_convs=num_convs, dilation=dilation)
        self._check_choice('fusion', fusion, ('add', 'mul'))
        self.reduction, self.num_convs, self.dilation = reduction, num_convs, dilation
        self.fusion = fusion
        width = in_channels // reduction
        self.channel = ChannelMLP(in_channels, width)
        self.channel.bn = nn.BatchNorm1d(width)
        self.spatial = nn.Module()
        self.spatial.reduce = ConvNormAct(
            in_channels, width, 1, norm_cfg=_NORM, act_cfg=_ACT, bias=True
        )
        options = dict(kernel_size=3, padding=dilation, dilation=dilation, bias=True)
        self.spatial.convs = nn.Sequential(
            *(
                ConvNormAct(width, width, norm_cfg=_NORM, act_cfg=_ACT, **options)
                for _ in range(num_convs)
            )
        )
        self.spatial.final = nn.Conv2d(width, 1, 1)
        self.start()

    def start(self) -> None:
        nn.init.zeros_(self.channel.fc1.bias)
        nn.init.zeros_(self.channel.fc2.bias)
        kaiming_normal(self.spatial.final)
        if self.init == 'identity':
            zero(self.spatial.final)
            if self.fusion == 'add':
                zero(self.channel.fc2)

    @recorded('channel logits')
    def channel_logits(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C)."""
        self._check_batch(self.channel.bn, x[:, :, :1, :1], 'the batch norm of the channel branch')
        hidden = self.channel.bn(linear_fp32(channel_means(x), self.channel.fc1).to(x.dtype))
        return linear_fp32(hidden.relu(), self.channel.fc2).to(x.dtype)

    @recorded('spatial logits')
    def spatial_logits(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, H, W)."""
        return self.spatial.final(self.spatial.convs(self.spatial.reduce(x))).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        logits = self.channel_logits(x)[:, :, None, None], self.spatial_logits(x)
        offset = 0.5 if self.init == 'identity' else 1.0
        return scale_by_fused_sigmoid(x, *logits, offset, multiply=self.fusion == 'mul')
