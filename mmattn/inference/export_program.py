"""The part of a network that can be exported, as a module images to outputs of its heads."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mmattn.errors import UsageError
from mmattn.models.logits import predicted_logits
from mmattn.ops import deform_conv


class NetworkProgram(nn.Module):
    """A network with its normalisation: images (N, C, H, W) as loaded -> outputs of its heads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        preprocessor = model.data_preprocessor
        self.flip = bool(
            getattr(preprocessor, '_channel_conversion', False)
            or getattr(preprocessor, 'channel_conversion', False)
        )
        normal = getattr(preprocessor, '_enable_normalize', False)
        mean = preprocessor.mean if normal else torch.zeros(1, 1, 1)
        std = preprocessor.std if normal else torch.ones(1, 1, 1)
        self.register_buffer('mean', mean.detach().clone())
        self.register_buffer('std', std.detach().clone())

    def normalise(self, image: Tensor) -> Tensor:
        image = image.flip(1) if self.flip and image.shape[1] == 3 else image
        return (image - self.mean) / self.std

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.backbone(self.normalise(image))
        return self.model.neck(maps) if getattr(self.model, 'neck', None) is not None else maps


class ExportedSegmentor(NetworkProgram):
    """Images (N, C, H, W) -> logits (N, classes, H, W)."""

    names = ('logits',)
    left_out = ()

    def forward(self, image: Tensor) -> Tensor:
        logits = predicted_logits(self.model, self.normalise(image))
        return nn.functional.interpolate(
            logits,
            size=image.shape[2:],
            mode='bilinear',
            align_corners=self.model.decode_head.align_corners,
        )


class ExportedDetector(NetworkProgram):
    """Images -> maps of backbone and neck, and for each the scores and deltas of the first head."""

    left_out = (
        'boxes, their selection and, of two-stage detectors, everything after the proposals: mmdet '
        'computes these with compiled operators of mmcv, which no exchange format has. '
        'onedl-mmdeploy exports whole detectors: https://github.com/vbti-development/onedl-mmdeploy',
    )

    def __init__(self, model: nn.Module, maps: int, parts: int, levels: int) -> None:
        super().__init__(model)
        self.head = getattr(model, 'rpn_head', None) or model.bbox_head
        kinds = [('feature', maps), ('score', levels), ('delta', levels)]
        kinds += [(f'extra{"" if i == 3 else f"{i - 2}_"}', levels) for i in range(3, parts + 1)]
        self.names = tuple(f'{kind}{i}' for kind, count in kinds for i in range(count))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.features(image)
        return (*maps, *(m for part in self.head(maps) for m in part))


def build_program(model: nn.Module, image: Tensor, config: str | Path) -> nn.Module:
    if hasattr(model, 'decode_head'):
        if isinstance(model.decode_head, nn.ModuleList):
            raise UsageError(
                f'{config}: cascades of decode heads, here '
                f'{", ".join(type(head).__name__ for head in model.decode_head)}, are not exported.'
            )
        if any(type(module).__name__ == 'PSAMask' for module in model.decode_head.modules()):
            raise UsageError(
                f'{config}: {type(model.decode_head).__name__} runs a compiled operator of mmcv, '
                'PSAMask, which no exchange format has, so it is not exported.'
            )
        return ExportedSegmentor(model).eval()
    head = getattr(model, 'rpn_head', None) or getattr(model, 'bbox_head', None)
    if head is None or not hasattr(model, 'backbone'):
        raise UsageError(f'{config}: {type(model).__name__} has no head that can be exported.')
    maps = NetworkProgram(model).features(image)
    try:
        outputs = head(maps)
        exportable = all(isinstance(m, Tensor) and m.dim() == 4 for part in outputs for m in part)
    except (TypeError, ValueError, AttributeError, IndexError, KeyError):
        exportable = False
    if not exportable or len(outputs) < 2 or {len(part) for part in outputs} != {len(outputs[0])}:
        raise UsageError(
            f'{config}: {type(head).__name__} does not return maps of scores and boxes for each '
            'map of the backbone, so it is not exported.'
        )
    return ExportedDetector(model, len(maps), len(outputs), len(outputs[0])).eval()


def replace_deformable_convs(program: nn.Module) -> None:
    """Replace MMCV's deformable convolutions by our form, which needs no compiled operator."""
    for module in program.modules():
        if hasattr(module, 'conv_offset') and hasattr(module, 'deform_groups'):
            module.forward = partial(_deform_conv, module)


def _deform_conv(conv: nn.Module, x: Tensor) -> Tensor:
    offsets = conv.conv_offset(x)
    geometry = dict(stride=conv.stride[0], padding=conv.padding[0], dilation=conv.dilation[0])
    if not type(conv).__name__.startswith('Modulated'):
        return deform_conv(x, offsets, conv.weight, **geometry)
    *offsets, mask = offsets.chunk(3, 1)
    offsets = torch.cat(offsets, 1)
    return deform_conv(x, offsets, conv.weight, conv.bias, mask.sigmoid(), **geometry)
