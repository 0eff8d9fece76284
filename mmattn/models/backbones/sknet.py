"""SKNet: ResNeXt with selective kernel units in place of its grouped 3x3 convolutions.

Source: Selective Kernel Networks, CVPR 2019, arXiv 1903.06586, table 1.
Reference code: implus/SKNet, models/sknet50.prototxt and models/sknet101.prototxt. Differs from
    them in: the stem's pooling pads by 1, as in mmdet; where the width is 256 the second has 16
    hidden channels in a unit, this one the paper's max(width // reduction, min_channels) = 32.
"""

from typing import ClassVar

from mmdet.models.backbones.resnet import ResNet
from mmdet.models.backbones.resnext import Bottleneck
from torch import nn

from mmattn.blocks import SKConv2d
from mmattn.registry import MODELS


class SKBottleneck(Bottleneck):
    """y = relu(x + BN(conv3(SK(relu(BN(conv1(x))))))), conv1 and conv3 1x1.

    Args:
        sk: arguments of `SKConv2d`; the others are those of mmdet's ResNeXt bottleneck.
    """

    def __init__(self, *args, groups: int, sk: dict, **kwargs) -> None:
        super().__init__(*args, groups=groups, **kwargs)
        self.conv2 = SKConv2d(
            self.conv1.out_channels,
            stride=self.conv2_stride,
            dilation=self.dilation,
            groups=groups,
            **sk,
        )
        # SKConv2d has norms and ReLUs inside: the bottleneck's ReLU after it changes nothing
        setattr(self, self.norm2_name, nn.Identity())


@MODELS.register_module()
class SKNet(ResNet):
    """The authors' SKNet-50 and SKNet-101, four feature levels with strides 4, 8, 16, 32.

    (N, 3, H, W) -> (N, 256, H/4, W/4), ..., (N, 2048, H/32, W/32), rounded up.

    Args:
        depth: 50 or 101.
        groups, base_width: those of the 3x3 convolutions, as in ResNeXt 32x4d.
        branches, reduction, min_channels: arguments of `SKConv2d`.
        **kwargs: arguments of `mmdet.ResNet`, except `dcn`. `conv_cfg` and `norm_cfg` do not apply
            inside the units, whose norms are plain batch norms; `sync_bn='torch'` of a config
            converts those to SyncBN, too.

    Raises:
        ValueError: an unknown depth, `dcn`, or what `SKConv2d` refuses; training with batch size 1
            and `norm_eval=False`.
    """

    arch_settings: ClassVar = {depth: ResNet.arch_settings[depth] for depth in (50, 101)}

    def __init__(
        self,
        depth: int,
        *,
        groups: int = 32,
        base_width: int = 4,
        branches: int = 2,
        reduction: int = 16,
        min_channels: int = 32,
        **kwargs,
    ) -> None:
        if depth not in self.arch_settings:
            raise ValueError(f'SKNet: {depth=}, allowed {", ".join(map(str, self.arch_settings))}')
        if kwargs.get('dcn') is not None:
            raise ValueError(f'SKNet: dcn={kwargs["dcn"]}, allowed None: its place is taken')
        self.groups, self.base_width = groups, base_width
        self.sk = dict(branches=branches, reduction=reduction, min_channels=min_channels)
        super().__init__(depth, **kwargs)

    def make_res_layer(self, **kwargs) -> nn.Module:
        kwargs |= dict(
            block=SKBottleneck,
            groups=self.groups,
            base_width=self.base_width,
            base_channels=self.base_channels,
            sk=self.sk,
        )
        return super().make_res_layer(**kwargs)
