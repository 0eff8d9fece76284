"""Large kernel attention: a map times its response, the output of large depthwise convolutions."""

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.ops import (
    depthwise_conv,
    disable_autocast,
    project,
    recompute_project,
    same_conv,
)
from mmattn.torch_compat import autocast_dtype

from ..base import AttentionBlock, zero
from .conv_norm_act import has_hooks

Conv = Callable[[str, Tensor], Tensor]  # name of a layer, its input -> its output


class LargeKernelAttention(AttentionBlock):
    """y = x * response(x), or y = x + P2 (z * response(z)) with z = GELU(P1 x).

    There is no sigmoid: the response is of any size and sign. It ends with a 1x1 convolution, the
    layer `last`. What comes before it is computed again in the backward pass. In addition to x are
    kept P1 x with projections, without them the response if `keeps_response`, else nothing.

    A subclass builds its layers and calls `start`.

    Args:
        in_channels: C.
        project: whether there are the projections P1 and P2, both 1x1 convolutions.
        init: 'paper' or 'identity'.
    """

    last: ClassVar[str]
    keeps_response: ClassVar[bool]

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

    def features(self, x: Tensor, conv: Conv) -> Tensor:
        """(N, C, H, W) -> the input of the layer `last`; `conv(name, x)` runs a layer."""
        raise NotImplementedError

    def response(self, x: Tensor, conv: Conv) -> Tensor:
        """(N, C, H, W) -> same shape."""
        return conv(self.last, self.features(x, conv))

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        layers = dict(self.named_children())
        if not all(type(v) is nn.Conv2d and not has_hooks(v) for v in layers.values()):
            return self._whole(x, lambda name, t: layers[name](t))
        tensors = [t for layer in layers.values() for t in (layer.weight, layer.bias)]
        dtype = autocast_dtype(x.device.type) or x.dtype
        if self._recorder is not None:  # what is computed again would be recorded again
            with disable_autocast(x):
                return self._by_weights(self._whole, list(layers), dtype, x, *tensors)
        step, z, layer = self.features, x, layers[self.last]
        if self.project:
            z = project(x, *_matrix(self.proj_1, dtype))
            step, layer = self._product, self.proj_2
        y = recompute_project(
            functools.partial(self._by_weights, step, list(layers), dtype),
            *_matrix(layer, dtype),
            z,
            *tensors,
            scale=None if self.project else x,
            last=not x.is_contiguous(),
            save=self.keeps_response,
        ).to(x.dtype)
        return x + y if self.project else y

    def _whole(self, x: Tensor, conv: Conv) -> Tensor:
        if not self.project:
            return self._product(x, conv)
        return x + conv('proj_2', self._product(conv('proj_1', x), conv)).to(x.dtype)

    def _product(self, x: Tensor, conv: Conv) -> Tensor:
        z = F.gelu(x) if self.project else x
        return z * self.response(z, conv).to(z.dtype)

    def _by_weights(
        self,
        step: Callable[[Tensor, Conv], Tensor],
        names: list[str],
        dtype: torch.dtype,
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """step(x, conv), where conv reads weight and bias of the named layers from `tensors`."""
        weights = dict(zip(names, zip(tensors[::2], tensors[1::2], strict=True), strict=True))
        end = 'proj_2' if self.project else self.last  # its output is in the memory format of x

        def conv(name: str, t: Tensor) -> Tensor:
            weight, bias = (v if v is None else v.to(dtype) for v in weights[name])
            dilation = getattr(self, name).dilation  # torch 2.4 cannot trace get_submodule
            last = name != end or not x.is_contiguous()
            return _conv(t.to(dtype), weight, bias, dilation, last)

        return step(x, conv)


def _matrix(layer: nn.Conv2d, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a 1x1 convolution, as `project` takes them."""
    bias = layer.bias if layer.bias is None else layer.bias.to(dtype)
    return layer.weight.flatten(1).to(dtype), bias


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
    y = same_conv(x, weight)
    return y if bias is None else y + bias[:, None, None]
