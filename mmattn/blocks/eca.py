"""Efficient channel attention: each channel is gated by the means of its neighbouring channels.

Source: ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks, CVPR 2020,
    arXiv 1910.03151, eq. 9 and 12.
Reference code: BangguWu/ECANet, models/eca_module.py; huggingface/pytorch-image-models,
    timm/layers/eca.py. Differs from both in: an even kernel is refused in the constructor; the mean
    and its convolution are computed in fp32. The authors' code takes any kernel size, as their
    published weights have sizes that no rule gives; the default here is the rule of the paper.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.ops import channel_means, disable_autocast, scale_channels, upcast
from mmattn.registry import MODELS
from mmattn.torch_compat import is_compiling

from .base import AttentionBlock, recorded, zero


@MODELS.register_module()
class ECA(AttentionBlock):
    """y = x * sigmoid(w * mean_hw(x)), a 1-d convolution over the channels, without bias.

    (N, C, H, W) -> same shape and dtype.

    Args:
        in_channels: C.
        kernel_size: k, the number of neighbouring channels, odd; if None, the odd number next to
            log2(C) / 2 + 1 / 2, which is 5 for 128 to 2047 channels.
        circular: whether the first and the last channel are neighbours, as in timm's
            `CecaModule`; otherwise means beyond them are 0.
        init: 'paper' (gates near 0.5) or 'identity' (w = 0 and the gate is 2 sigmoid).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'eca'
    kind = 'channel'
    gated = True
    examples = (dict(in_channels=32), dict(in_channels=12, kernel_size=5, circular=True))

    def __init__(
        self,
        in_channels: int,
        *,
        kernel_size: int | None = None,
        circular: bool = False,
        init: str = 'paper',
    ) -> None:
        super().__init__(in_channels, init)
        if kernel_size is None:
            kernel_size = int((math.log2(in_channels) + 1) / 2)
            kernel_size += 1 - kernel_size % 2
        self._check_whole(kernel_size=kernel_size)
        self._check(kernel_size % 2 == 1, f'{kernel_size=}, allowed odd numbers')
        self._check(
            not circular or kernel_size <= 2 * in_channels + 1,
            f'{kernel_size=} with circular=True, allowed up to 2 * {in_channels=} + 1',
        )
        self.kernel_size, self.circular = kernel_size, circular
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.start()

    def start(self) -> None:
        if self.init == 'identity':
            zero(self.conv)

    @recorded('channel', view='_flat')
    def gate(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 1, 1), in (0, 1), with init='identity' in (0, 2)."""
        means, reach = upcast(channel_means(x, keepdim=True)).transpose(1, 2), self.kernel_size // 2
        if self.circular:
            means, reach = F.pad(means, (0, 0, reach, reach), 'circular'), 0
        with disable_autocast(x):
            logits = _convolve(means, upcast(self.conv.weight).unsqueeze(3), reach)
        return self._sigmoid(logits.transpose(1, 2)).to(x.dtype)

    def _flat(self, gate: Tensor) -> Tensor:
        return gate.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        return scale_channels(x, self.gate)


def _convolve(means: Tensor, weight: Tensor, reach: int) -> Tensor:
    """(N, 1, C + 2 k // 2 - 2 reach, 1), (1, 1, k, 1) -> (N, 1, C, 1)."""
    if is_compiling() or not means.is_cpu:
        return torch.conv2d(means, weight, None, 1, (reach, 0))
    # oneDNN takes several times as long for so few values
    windows = F.pad(means, (0, 0, reach, reach)).unfold(2, weight.shape[2], 1)  # (N, 1, C, 1, k)
    return (windows @ weight.view(-1, 1)).squeeze(4)
