"""Convolution, norm and activation with the keys of MMCV's `ConvModule`, without MMCV."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.ops import channels_last, is_channels_last, match_memory_format, project
from mmattn.registry import ROOT

_CONVS = {'Conv2d': nn.Conv2d, 'Conv': nn.Conv2d}
_NORMS = {  # type: layer, name in the state dict
    'BN': (nn.BatchNorm2d, 'bn'),
    'BN2d': (nn.BatchNorm2d, 'bn'),
    'SyncBN': (nn.SyncBatchNorm, 'bn'),
    'GN': (nn.GroupNorm, 'gn'),
    'IN': (nn.InstanceNorm2d, 'in'),
    'IN2d': (nn.InstanceNorm2d, 'in'),
}
_INPLACE = ('ReLU', 'LeakyReLU', 'RReLU', 'ReLU6', 'ELU', 'SiLU', 'Hardswish')


class ConvNormAct(nn.Sequential):
    """act(norm(conv(x))); keys `conv.*` and `bn.*`, `gn.*` or `in.*`, the activation has none.

    The convolution has a bias if there is no norm. Initialised as in MMCV: Kaiming normal over
    fan-out, biases 0, norm weight 1.

    Args:
        in_channels, out_channels, kernel_size: those of `nn.Conv2d`.
        **options: further arguments of the convolution.
        conv_cfg: None or `dict(type='Conv2d')`, or any layer registered with mmengine.
        norm_cfg: None or a dict with `type` 'BN', 'SyncBN', 'GN' (with `num_groups`), 'IN', or any
            registered, and optionally `requires_grad`.
        act_cfg: None or a dict with `type` a class name of `torch.nn`, or any registered.
        bias: whether the convolution has a bias; if None, by the rule above.

    Raises:
        ValueError: an unknown type.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        bias: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        extra = dict(conv_cfg or dict(type='Conv2d'))
        conv_type = extra.pop('type')
        conv = _CONVS.get(conv_type) or _find('conv_cfg', conv_type, _CONVS)
        options['bias'] = norm_cfg is None if bias is None else bias
        self.add_module('conv', conv(in_channels, out_channels, kernel_size, **options, **extra))
        self.norm_name = None
        if norm_cfg is not None:
            self.norm_name, norm = _norm(norm_cfg, out_channels)
            self.add_module(self.norm_name, norm)
        if act_cfg is not None:
            extra = dict(act_cfg)
            act_type = extra.pop('type')
            known = ['ReLU and others of torch.nn']
            act = getattr(nn, act_type, None) or _find('act_cfg', act_type, known)
            if act_type in _INPLACE:
                extra.setdefault('inplace', True)
            self.add_module('activate', act(**extra))
        self.slope = act_cfg.get('negative_slope', 0.01) if _leaky(act_cfg) else 0.0
        self.reset_parameters()

    @property
    def norm(self) -> nn.Module | None:
        return self._modules[self.norm_name] if self.norm_name else None

    def reset_parameters(self) -> None:
        if hasattr(self.conv, 'init_weights'):  # a registered layer with its own initialisation
            self.conv.init_weights()
        else:
            nonlinearity = 'leaky_relu' if self.slope else 'relu'
            nn.init.kaiming_normal_(self.conv.weight, self.slope, 'fan_out', nonlinearity)
            if self.conv.bias is not None:
                nn.init.zeros_(self.conv.bias)
        if self.norm is not None and hasattr(self.norm, 'reset_parameters'):
            self.norm.reset_parameters()


def pointwise(x: Tensor, layers: Sequence[nn.Module], factor: Tensor | None = None) -> list[Tensor]:
    """layer(x) for several 1x1 convolutions, in one product if all are `foldable`.

    Args:
        x: (N, C, H, W).
        layers: convolutions of C channels, with biases.
        factor: scalar factor of the last result, (); folded in, its gradient needs only x.

    Returns:
        (N, D, H, W) each, in channels_last.
    """
    if not all(map(foldable, layers)):
        x = channels_last(x)
        *outputs, last = [layer(x) for layer in layers]
        return [*outputs, last if factor is None else factor * last]
    convs = [getattr(layer, 'conv', layer) for layer in layers]
    weights, biases = [conv.weight for conv in convs], [conv.bias for conv in convs]
    if factor is not None:
        weights[-1], biases[-1] = factor * weights[-1], factor * biases[-1]
    y = project(x, torch.cat(weights).flatten(1), torch.cat(biases))
    return list(y.split([conv.out_channels for conv in convs], 1))


def run_folded(layer: ConvNormAct, x: Tensor) -> Tensor:
    """layer(x); by a matrix product if its convolution is `foldable`, which is faster."""
    if has_hooks(layer) or not foldable(layer.conv):
        return layer(x)
    weight, bias = layer.conv.weight.flatten(1), layer.conv.bias
    return apply_norm_act(layer, project(x, weight, bias, last=is_channels_last(x)), x)


def apply_norm_act(layer: ConvNormAct, y: Tensor, x: Tensor) -> Tensor:
    """Norm and activation of a layer, on y in the memory format of x.

    So a batch norm gets the format that the convolution would have returned.
    """
    y = match_memory_format(y, x)
    for module in list(layer)[1:]:
        y = module(y)
    return y


def foldable(layer: nn.Module | None) -> bool:
    """Whether a layer is a plain 1x1 convolution (no stride, groups, hooks) that can be fused.

    Its weights may then be multiplied with others and applied in another order. A subclass may do
    something else, and a hook would miss the call.
    """
    if type(layer) is ConvNormAct and len(layer) == 1 and not has_hooks(layer):
        layer = layer.conv
    return (
        type(layer) is nn.Conv2d
        and (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1)
        and layer.padding in ((0, 0), 'valid', 'same')
        and not has_hooks(layer)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks, which need it to be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of one number for both, or of a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


def kaiming_normal(conv: nn.Conv2d, mode: str = 'fan_out') -> None:
    """Initialise as ResNet codes do: normal with variance 2 / fan, bias 0."""
    nn.init.kaiming_normal_(conv.weight, mode=mode, nonlinearity='relu')
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _leaky(act_cfg: dict | None) -> bool:
    return bool(act_cfg) and act_cfg['type'] == 'LeakyReLU'


def _norm(norm_cfg: dict, channels: int) -> tuple[str, nn.Module]:
    extra = dict(norm_cfg)
    norm_type, requires_grad = extra.pop('type'), extra.pop('requires_grad', True)
    extra.setdefault('eps', 1e-5)
    if norm_type in _NORMS:
        layer, name = _NORMS[norm_type]
    else:
        layer = _find('norm_cfg', norm_type, _NORMS)
        name = getattr(layer, '_abbr_', None) or _norm_name(layer)
    if layer is nn.GroupNorm:
        groups = extra.get('num_groups')
        if not groups or channels % groups:
            allowed = [n for n in range(1, channels + 1) if channels % n == 0][-6:]
            raise ValueError(f'norm_cfg: GN with num_groups={groups}, allowed e.g. {allowed}')
        norm = layer(num_channels=channels, **extra)
    else:
        norm = layer(channels, **extra)
    for parameter in norm.parameters():
        parameter.requires_grad = requires_grad
    return name, norm


def _norm_name(layer: type) -> str:
    """The name that MMCV infers for a norm class."""
    for base, name in (nn.InstanceNorm2d, 'in'), (nn.modules.batchnorm._BatchNorm, 'bn'):
        if issubclass(layer, base):
            return name
    for word, name in ('batch', 'bn'), ('group', 'gn'), ('layer', 'ln'), ('instance', 'in'):
        if word in layer.__name__.lower():
            return name
    return 'norm_layer'


def _find(argument: str, name: str | type, known: Any) -> type:
    cls = ROOT.get(name) if isinstance(name, str) else name
    if cls is None:
        raise ValueError(f'{argument}: type={name!r}, allowed {", ".join(known)}, or a registered')
    return cls
