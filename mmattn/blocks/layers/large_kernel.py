"""Large kernel attention: a map times its response, the output of large depthwise convolutions."""

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.ops import depthwise_conv, disable_autocast, project, recompute
from mmattn.torch_compat import autocast_dtype

from ..base import AttentionBlock, zero
from .conv_norm_act import has_hooks

Conv = Callable[[str, Tensor], Tensor]  # name of a layer, its input -> its output


class LargeKernelAttention(AttentionBlock):
    """y = x * response(x), or y = x + P2 (z * response(z)) with z = GELU(P1 x).

    There is no sigmoid: the response is of any size and sign. For backward only x is kept, with
    projections also P1 x and the input of P2; the rest is computed again.

    A subclass builds its layers, calls `start`, and computes the response by their names.

    Args:
        in_channels: C.
        project: whether there are the projections P1 and P2, both 1x1 convolutions.
        init: 'paper' or 'identity'.
    """

    last: ClassVar[str]  # name of the layer that gives the response

    def __init__(self, in_channels: int, project: bool, init: str) -> None:
        super().__init__(in_channels, init)
        self._check_choice('project', project, (False, True))
        self.project = project
        if project:
            self.proj_1 = nn.Conv2d(in_channels, in_channels, 1)
            self.proj_2 = nn.Conv2d(in_channels, in_channels, 1)

    def start(self) -> None:
        for conv in self.children():
            fan_out = math.prod(conv.kernel_size) * conv.out_channels // conv.groups
            nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))
            nn.init.zeros_(conv.bias)
        if self.init == 'identity' and self.project:
            zero(self.proj_2)
        elif self.init == 'identity':
            conv = self.get_submodule(self.last)
            nn.init.zeros_(conv.weight)
            nn.init.ones_(conv.bias)

    def response(self, x: Tensor, conv: Conv) -> Tensor:
        """(N, C, H, W) -> same shape; `conv(name, x)` runs a layer."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if not self.project:
            return self._attend(x)
        z = self._attend(_pointwise(self.proj_1, x))
        return x + _pointwise(self.proj_2, z, last=not x.is_contiguous()).to(x.dtype)

    def _attend(self, x: Tensor) -> Tensor:
        layers = {k: v for k, v in self.named_children() if not k.startswith('proj_')}
        if not all(map(_is_plain, layers.values())):
            return self._product(x, lambda name, t: layers[name](t))
        tensors = [t for layer in layers.values() for t in (layer.weight, layer.bias)]
        dtype = autocast_dtype(x.device.type) or x.dtype
        run = functools.partial(self._run, list(layers), dtype)
        if self._recorder is None:
            return recompute(run, x, *tensors)
        with disable_autocast(x):  # a map is recorded once, so nothing is computed again
            return run(x, *tensors)

    def _run(self, names: list[str], dtype: torch.dtype, x: Tensor, *tensors: Tensor) -> Tensor:
        """The product, by the weights and biases of the named layers."""
        weights = dict(zip(names, zip(tensors[::2], tensors[1::2], strict=True), strict=True))

        def conv(name: str, t: Tensor) -> Tensor:
            weight, bias = (v if v is None else v.to(dtype) for v in weights[name])
            t, dilation = t.to(dtype), self.get_submodule(name).dilation
            last = name != self.last or not x.is_contiguous()
            return _conv(t, weight, bias, dilation, last)

        return self._product(x, conv)

    def _product(self, x: Tensor, conv: Conv) -> Tensor:
        z = F.gelu(x) if self.project else x
        return z * self.response(z, conv).to(z.dtype)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is as it was built, and no hook needs its call."""
    return type(layer) is nn.Conv2d and not has_hooks(layer)


def _pointwise(layer: nn.Module, x: Tensor, last: bool = True) -> Tensor:
    if not _is_plain(layer):
        return layer(x)
    return project(x, layer.weight.flatten(1), layer.bias, last=last)


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int], last: bool
) -> Tensor:
    """A convolution that keeps the size: 1x1, depthwise, or neither.

    A 1x1 gives channels_last, or contiguous if not `last`.
    """
    if weight.shape[2:].numel() == 1:
        return project(x, weight.flatten(1), bias, last=last)
    if weight.shape[1] == 1:
        return depthwise_conv(x, weight, bias, dilation)
    return F.conv2d(x, weight, bias, padding=tuple(k // 2 for k in weight.shape[2:]))
