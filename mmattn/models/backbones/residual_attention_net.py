"""Residual attention network: pre-activation residual units with attention modules between them.

Source: Residual Attention Network for Image Classification, CVPR 2017, arXiv 1704.06904, table 2.
Reference code: fwang91/residual-attention-network, model/Attention-56-deploy.prototxt and
    Attention-92-deploy.prototxt. Differs from them in: poolings pad by 1; the mask is a sigmoid, as
    in the paper, where some versions of the files have TanH.
"""

from typing import ClassVar

from mmcv.cnn import build_norm_layer
from mmdet.models.backbones.resnet import Bottleneck, ResNet
from mmengine.model import Sequential
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmattn.blocks import ResidualAttention
from mmattn.blocks.residual_attention import ResidualUnit
from mmattn.registry import MODELS


class Checkpointed(Sequential):
    """Saves only the inputs of its children for backward, which recomputes the rest."""

    def forward(self, x: Tensor) -> Tensor:
        for unit in self:
            x = checkpoint(unit, x, use_reentrant=False) if x.requires_grad else unit(x)
        return x


@MODELS.register_module()
class ResidualAttentionNet(ResNet):
    """The authors' Attention-56 and Attention-92, four feature levels with strides 4, 8, 16, 32.

    A stage is a residual unit that changes channels and size, then attention modules, whose masks
    are pooled 3, 2, 1 times in stages 1, 2, 3; in stage 4 two more units, batch norm and ReLU.

    (N, 3, H, W) -> (N, 256, H/4, W/4), ..., (N, 2048, H/32, W/32), rounded up. The last one ends in
    ReLU, the others do not.

    Args:
        depth: 56 or 92.
        in_channels: channels of the image.
        base_channels: channels of the stem; the stages return 4, 8, 16, 32 times as many.
        norm_cfg: config of the norms of the stem and after the last unit. The units have plain
            batch norms; `sync_bn='torch'` of a config converts all of them to SyncBN.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: arguments of `mmdet.ResNet`.

    Raises:
        ValueError: an unknown depth; training on one image so small that a mask has one pixel.
    """

    arch_settings: ClassVar = {  # number of modules or units after the first unit of each stage
        56: (Bottleneck, (1, 1, 1, 2)),
        92: (Bottleneck, (1, 2, 3, 2)),
    }

    def __init__(
        self,
        depth: int,
        *,
        in_channels: int = 3,
        base_channels: int = 64,
        out_indices: tuple[int, ...] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = True,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if depth not in self.arch_settings:
            allowed = ', '.join(map(str, self.arch_settings))
            raise ValueError(f'ResidualAttentionNet: {depth=}, allowed {allowed}')
        super().__init__(
            depth,
            in_channels=in_channels,
            base_channels=base_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_cfg=norm_cfg or dict(type='BN'),
            norm_eval=norm_eval,
            with_cp=with_cp,
            zero_init_residual=False,  # no norm ends a residual branch
            init_cfg=init_cfg,
        )

    def make_res_layer(
        self, inplanes: int, planes: int, num_blocks: int, stride: int, **_
    ) -> Sequential:
        channels = planes * Bottleneck.expansion
        poolings = 3 - len(self.res_layers)  # number of stages before this one
        stage = (Checkpointed if self.with_cp else Sequential)(
            ResidualUnit(inplanes, channels, stride)
        )
        for _ in range(num_blocks):
            stage.append(
                ResidualAttention(channels, depth=poolings) if poolings else ResidualUnit(channels)
            )
        if not poolings:
            stage.add_module('norm', build_norm_layer(self.norm_cfg, channels)[1])
            stage.add_module('relu', nn.ReLU())
        return stage
