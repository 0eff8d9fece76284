"""Attention gate: a coarser map says which positions of a finer one are kept.

Source: Attention U-Net: Learning Where to Look for the Pancreas, MIDL 2018,
    arXiv 1804.03999, eq. 1-2.
Reference code: ozan-oktay/Attention-Gated-Networks, models/layers/grid_attention_layer.py. The
    paper ends at x * a; the 1x1 convolution and norm after it (`project`) are the code's. Differs
    from it in: no convolution bias before a norm; a constant map of logits gives no NaN; the map
    over its sum of logits, whose sum may be 0, is not offered.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.ops import disable_autocast, first_max, project_gated, resize_bilinear, upcast
from mmattn.registry import MODELS
from mmattn.torch_compat import HAS_OLD_EXPORT, is_exporting

from .base import AttentionBlock, recorded, zero
from .layers.conv_norm_act import (
    ConvNormAct,
    apply_norm_act,
    foldable,
    has_hooks,
    pair,
)
from .layers.scale import Scale

_BN = dict(type='BN')


@MODELS.register_module()
class AttentionGate(AttentionBlock):
    """y = norm(W (x * a)), a = up(sigmoid(psi(relu(theta(x) + down(phi(gating)))))).

    theta is a convolution of kernel and stride `sub_sample`, phi one of `gating_sub_sample`, whose
    result is resized bilinearly to that of theta; a is resized to the size of x.

    (N, C, H, W), (N, C_g, h, w) -> (N, C, H, W); h and w are any.

    Args:
        in_channels: C of x, the map that is gated, as the skip connection of a U-Net.
        gating_channels: C_g of the map that gates it, as the decoder's one level below.
        channels: channels of theta and phi; C // 2, at least 1, if None.
        sub_sample: kernel and stride of theta, one number or (height, width); x / sub_sample is the
            size at which logits are computed.
        gating_sub_sample: the same of phi.
        bias: whether phi has a bias; theta has none.
        activation: 'relu', 'softplus' or None, of theta + phi.
        normalize: how logits z become the map: 'sigmoid'; over all positions 'softmax', 'mean_flow'
            (z - min) / sum(z - min), or 'range' (z - min) / (max - min). Where all z are equal,
            'mean_flow' gives equal weights that sum to 1, 'range' gives 1.
        project: whether W and norm follow, or y = x * a, as in the paper.
        norm_cfg: norm after W, see `ConvNormAct`; if None, W has a bias.
        init: 'paper' or 'identity': psi = 0 and a = 1 + up(2 sigmoid(z) - 1); with `project`, or
            another `normalize`, x + rho * (y - x) with the paper's y, rho learned from 0.

    Raises:
        ValueError: an argument out of range; inputs of other shapes, of different batch sizes, or
            smaller than their `sub_sample`.
    """

    _abbr_ = 'attention_gate'
    kind = 'spatial'
    typical = dict(gating_channels=512)
    examples = (
        dict(in_channels=16, gating_channels=24),
        dict(in_channels=12, gating_channels=8, channels=5, sub_sample=(2, 1), project=False),
        dict(
            in_channels=8,
            gating_channels=12,
            gating_sub_sample=3,
            bias=False,
            activation='softplus',
            normalize='softmax',
            norm_cfg=None,
        ),
        dict(in_channels=8, gating_channels=6, sub_sample=1, normalize='mean_flow', project=False),
        dict(in_channels=8, gating_channels=6, sub_sample=1, normalize='range', activation=None),
    )

    def __init__(
        self,
        in_channels: int,
        gating_channels: int,
        *,
        channels: int | None = None,
        sub_sample: int | tuple[int, int] = 2,
        gating_sub_sample: int | tuple[int, int] = 1,
        bias: bool = True,
        activation: str | None = 'relu',
        normalize: str = 'sigmoid',
        project: bool = True,
        norm_cfg: dict | None = _BN,
        init: str = 'paper',
    ) -> None:
        super().__init__(in_channels, init)
        channels = max(in_channels // 2, 1) if channels is None else channels
        self._check_whole(gating_channels=gating_channels, channels=channels)
        self.sub_sample = self._pair('sub_sample', sub_sample)
        self.gating_sub_sample = self._pair('gating_sub_sample', gating_sub_sample)
        self._check_choice('activation', activation, tuple(_ACTIVATIONS))
        self._check_choice('normalize', normalize, tuple(_NORMALIZE))
        self._check(
            project or norm_cfg in (None, _BN),
            f'{norm_cfg=} with project=False, which has no norm; allowed None',
        )
        self.gating_channels = gating_channels
        self.activation, self.normalize = activation, normalize
        self.theta = nn.Conv2d(in_channels, channels, self.sub_sample, self.sub_sample, bias=False)
        self.phi = nn.Conv2d(
            gating_channels, channels, self.gating_sub_sample, self.gating_sub_sample, bias=bias
        )
        self.psi = nn.Conv2d(channels, 1, 1)
        self.project = (
            ConvNormAct(in_channels, in_channels, 1, norm_cfg=norm_cfg) if project else None
        )
        if init == 'identity' and not self.gated:
            self.rho = Scale(0)
        self.start()

    def _pair(self, name: str, value: int | tuple[int, int]) -> tuple[int, int]:
        is_pair = isinstance(value, (tuple, list)) and len(value) == 2
        for number in value if is_pair else [value]:
            self._check_whole(**{name: number})
        return pair(value)

    @property
    def gated(self) -> bool:
        """With an output transform, or weights over all positions, 'identity' has rho instead."""
        return self.project is None and self.normalize == 'sigmoid'

    @property
    def limits(self) -> dict[str, str]:
        limits = dict(plugin='needs two maps; a position of a residual block has one')
        height, width = self.sub_sample
        if max(height, width) > 1:
            same = f'H and W from {height}'
            sizes = same if height == width else f'H from {height} and W from {width}'
            limits['any_size'] = f'with sub_sample, {sizes}'
        if HAS_OLD_EXPORT and max(self.gating_sub_sample) > 1:
            limits['export'] = 'with gating_sub_sample and torch before 2.7, sizes are fixed'
        return limits

    @property
    def dynamic_from(self) -> int:
        """Exporters fix the size of a map that theta leaves with one pixel."""
        return 2 * max(self.sub_sample)

    @property
    def without_effect(self) -> tuple[str, ...]:
        """What is added to all logits is removed where they are compared with each other."""
        if self.normalize == 'sigmoid':
            return ()
        return ('psi.bias',) if self.activation else ('psi.bias', 'phi.bias')

    def start(self) -> None:
        for conv in self.theta, self.phi, self.psi:
            nn.init.kaiming_normal_(conv.weight)
        if self.project is not None:
            nn.init.kaiming_normal_(self.project.conv.weight)
            weight = getattr(self.project.norm, 'weight', None)
            if weight is not None:
                nn.init.normal_(weight, 1, 0.02)
        if self.init == 'identity' and self.gated:
            zero(self.psi)

    def input_shapes(self, batch: int, height: int, width: int) -> list[tuple[int, ...]]:
        """The gating map is as large as phi needs it to have the size of theta."""
        size = [
            -(-n // s) * t
            for n, s, t in zip(
                (height, width), self.sub_sample, self.gating_sub_sample, strict=True
            )
        ]
        return [(batch, self.in_channels, height, width), (batch, self.gating_channels, *size)]

    @recorded('spatial')
    def gate(self, x: Tensor, gating: Tensor) -> Tensor:
        """(N, C, H, W), (N, C_g, h, w) -> a (N, 1, H, W), in (0, 1).

        In (0, 2) with init='identity', 'sigmoid' and no `project`.
        """
        f = self.theta(x)  # (N, F, H / s, W / s)
        f = f + _resize(self.phi(gating), f)
        f = _ACTIVATIONS[self.activation](f)
        with disable_autocast(x):
            f, weight, bias = (upcast(t) for t in (f, self.psi.weight, self.psi.bias))
            z = torch.conv2d(f, weight, bias)  # (N, 1, H / s, W / s)
            if self.init == 'identity' and self.gated:
                a = 1 + _resize(2 * z.sigmoid() - 1, x)  # resizing keeps 0, but not 1, bit-exactly
            else:
                a = _resize(_NORMALIZE[self.normalize](z), x)
            return a.to(x.dtype)

    def forward(self, x: Tensor, gating: Tensor) -> Tensor:
        self._check_inputs(x, gating)
        a = self.gate(x, gating)
        y = x * a if self.project is None else self._project(x, a)
        if self.init == 'identity' and not self.gated:
            y = x + self.rho(y.to(x.dtype) - x)
        return y.to(x.dtype)

    def _project(self, x: Tensor, a: Tensor) -> Tensor:
        """norm(W (x * a))."""
        layer = self.project
        if has_hooks(layer) or not foldable(layer.conv):
            return layer(x * a)
        weight, bias, norm = layer.conv.weight.flatten(1), layer.conv.bias, layer.norm
        if _is_affine(norm):
            factor = upcast(norm.weight) / (upcast(norm.running_var) + norm.eps).sqrt()
            bias = upcast(norm.bias) - factor * upcast(norm.running_mean)
            return project_gated(x, a, (factor[:, None] * weight).to(weight.dtype), bias)
        return apply_norm_act(layer, project_gated(x, a, weight, bias), x)

    def _check_inputs(self, x: Tensor, gating: Tensor) -> None:
        self._check_input(x)
        self._check_input(gating, self.gating_channels, 'gating')
        shapes = f'input {tuple(x.shape)} and gating {tuple(gating.shape)}'
        self._check(len(x) == len(gating), f'{shapes} differ in the batch size')
        for name, value, size in (
            ('sub_sample', x, self.sub_sample),
            ('gating_sub_sample', gating, self.gating_sub_sample),
        ):
            fits = value.shape[2] >= size[0] and value.shape[3] >= size[1]
            self._check(
                fits, f'{shapes} with {name}={size}, allowed H from {size[0]}, W from {size[1]}'
            )
        if self.project is not None and self.project.norm is not None:
            self._check_batch(self.project.norm, x, 'the norm of project')


def _is_affine(norm: nn.Module | None) -> bool:
    """Whether a norm is a factor and an offset a channel, which the convolution can take over."""
    return (
        type(norm) is nn.BatchNorm2d
        and not (norm.training or has_hooks(norm))
        and norm.affine
        and norm.track_running_stats
    )


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """x (N, D, h, w) at the height and width of another map."""
    size = like.shape[2:]
    if not is_exporting() and x.shape[2:] == size:  # a program must not ask for sizes
        return x
    return resize_bilinear(x, *size, align_corners=False)


def _softmax(z: Tensor) -> Tensor:
    return z.flatten(2).softmax(-1).reshape(z.shape)


def _mean_flow(z: Tensor) -> Tensor:
    """(z - min) / sum(z - min) over positions; (N, 1, H, W)."""
    flat = z.flatten(1)
    above = flat + first_max(-flat, 1)[:, None]
    equal = _equal(above, flat)
    above = above.where(~equal, torch.ones_like(above))
    return (above / above.sum(1, keepdim=True)).reshape(z.shape)


def _range(z: Tensor) -> Tensor:
    """(z - min) / (max - min) over positions; (N, 1, H, W)."""
    flat = z.flatten(1)
    above = flat + first_max(-flat, 1)[:, None]
    equal = _equal(above, flat)
    above = above.where(~equal, torch.ones_like(above))
    return (above / first_max(above, 1)[:, None]).reshape(z.shape)


def _equal(above: Tensor, z: Tensor) -> Tensor:
    """(N, 1), whether logits (N, P) differ by no more than rounding."""
    with torch.no_grad():
        largest = z.abs().amax(1, keepdim=True)
        return above.amax(1, keepdim=True) <= 16 * torch.finfo(z.dtype).eps * largest


_ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    'relu': torch.relu_,
    'softplus': F.softplus,
    None: lambda f: f,
}
_NORMALIZE: dict[str, Callable[[Tensor], Tensor]] = {
    'sigmoid': torch.sigmoid,
    'softmax': _softmax,
    'mean_flow': _mean_flow,
    'range': _range,
}
