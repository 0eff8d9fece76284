"""A training step of a segmentor: ResNet-50 of stride 8 with criss-cross attention in its head."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.blocks import CrissCrossAttention

from . import restated
from .bench import Bench, perturb_constants
from .contenders import FORMATS
from .loss import cross_entropy
from .timing import time_calls

_STAGES = (
    (3, 64, 1, 1),
    (4, 128, 2, 1),
    (6, 256, 1, 2),
    (3, 512, 1, 4),
)  # units, width, stride, dilation

_FULL = ((8, 3, 512, 1024), 1)  # (N, 3, H, W), divisor of all widths
_SMALL = ((2, 3, 32, 32), 16)


def measure(bench: Bench) -> None:
    """Rows 'time': ours, the formula and none, in mixed precision of bf16, in both formats."""
    shape, divisor = _SMALL if bench.small else _FULL
    for layout, form in FORMATS.items():
        for name, role in ('ours', 'ours'), ('restated', 'baseline'), ('none', 'other'):
            if not bench.has_time(6, f'network {name} {layout}'):
                continue
            row = dict(block='R50-D8 network', dtype='bf16', shape=list(shape), measure='step')
            row |= dict(contender=name, role=role, layout=layout, compiled=False)
            try:
                torch.manual_seed(0)
                model = Segmentor(name, divisor).to(bench.device).to(memory_format=form)
                images = torch.randn(shape, device=bench.device).contiguous(memory_format=form)
                labels = torch.randint(19, (shape[0], *shape[2:]), device=bench.device)
                row['call_ms'] = time_calls(bench, _step(model, images, labels))
            except Exception as error:
                row['error'] = bench.survive(error)
            bench.row('time', **row)
            model = images = None
            bench.release()


def _step(model: nn.Module, images: Tensor, labels: Tensor):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def call(_: int) -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16):
            logits = model(images)
        up = F.interpolate(logits.float(), images.shape[2:], mode='bilinear')
        cross_entropy(up, labels).backward()
        optimizer.step()

    return call


class Segmentor(nn.Module):
    """(N, 3, H, W) -> (N, 19, H / 8, W / 8).

    Args:
        attention: 'ours', 'restated' or 'none'.
        divisor: of all widths.
    """

    def __init__(self, attention: str, divisor: int) -> None:
        super().__init__()
        width, layers = 64 // divisor, []
        layers += [_conv(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
        for units, inner, stride, dilation in _STAGES:
            for number in range(units):
                layers.append(
                    _Unit(width, inner // divisor, stride if number == 0 else 1, dilation)
                )
                width = 4 * inner // divisor
        self.backbone = nn.Sequential(*layers)
        channels = 512 // divisor
        self.before = _conv(width, channels, 3)
        self.attention = perturb_constants(CrissCrossAttention(channels, recurrence=2))
        self.run = dict(
            ours=lambda block: block, restated=restated.criss_cross, none=lambda _: nn.Identity()
        )[attention](self.attention)
        self.after = _conv(channels, channels, 3)
        self.bottleneck = _conv(width + channels, channels, 3)
        self.classify = nn.Conv2d(channels, 19, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.backbone(images)
        context = self.after(self.run(self.before(x)))
        return self.classify(self.bottleneck(torch.cat([x, context], 1)))


class _Unit(nn.Module):
    """Bottleneck of a ResNet."""

    def __init__(self, channels: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.reduce = _conv(channels, width, 1)
        self.conv = _conv(width, width, 3, stride, dilation)
        self.expand = _conv(width, 4 * width, 1, relu=False)
        same = channels == 4 * width and stride == 1
        self.shortcut = nn.Identity() if same else _conv(channels, 4 * width, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.expand(self.conv(self.reduce(x))) + self.shortcut(x))


def _conv(
    channels: int, width: int, kernel: int, stride: int = 1, dilation: int = 1, relu: bool = True
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(channels, width, kernel, stride, padding, dilation, bias=False)
    layers = [conv, nn.BatchNorm2d(width), *([nn.ReLU(inplace=True)] if relu else [])]
    return nn.Sequential(*layers)
