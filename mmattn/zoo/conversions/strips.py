"""Authors' gates on strips: coordinate attention and timm's variants of it, triplet attention."""

from typing import Any

import torch
from torch import nn

from mmattn import blocks

from ..author_module import AuthorModule


def coordinate(author: AuthorModule) -> nn.Module:
    channels = author.channels('inp')
    out_channels = author.argument('oup', channels)
    if out_channels != channels:
        author.fail(f'oup={out_channels}, but the product needs inp={channels}')
    author.ignore_arguments('reduction', 'groups')  # the width is in the weights
    return _coordinate(author, channels)


def timm_coordinate(author: AuthorModule) -> nn.Module:
    channels = _timm_channels(author, act='hardswish', norm='batchnorm2d')
    _ignore_width(author)
    return _coordinate(author, channels)


def _coordinate(author: AuthorModule, channels: int) -> nn.Module:
    width, bias = len(author.tensor('conv1.weight')), 'conv1.bias' in author.tensors
    author.rename({'conv1': 'reduce.conv', 'bn1': 'reduce.bn'})
    author.rename({'conv_h': 'rows', 'conv_w': 'columns', 'conv2': 'rows', 'conv3': 'columns'})
    return blocks.CoordinateAttention(channels, reduction=channels, min_channels=width, bias=bias)


def timm_simple(author: AuthorModule) -> nn.Module:
    channels = _timm_channels(author, act='silu')
    _ignore_width(author)
    width, bias = len(author.tensor('fc1.weight')), 'fc1.bias' in author.tensors
    for theirs, ours in ('fc1', 'reduce.conv'), ('fc_h', 'rows'), ('fc_w', 'columns'):
        author.converted[f'{ours}.weight'] = author.tensor(f'{theirs}.weight')[..., None, None]
        author.drop(f'{theirs}.weight')
        author.rename({theirs: ours})
    return blocks.CoordinateAttention(
        channels, mode='simple', reduction=channels, min_channels=width, bias=bias
    )


def timm_local(author: AuthorModule) -> nn.Module:
    channels = _timm_channels(author, act='silu', norm='groupnorm1')
    author.ignore_arguments('kernel_size')  # in the weights
    options = _depthwise(author)
    author.rename({'norm_h': 'rows.gn', 'norm_w': 'columns.gn'})
    return blocks.CoordinateAttention(channels, mode='local', **options)


def timm_strip(author: AuthorModule) -> nn.Module:
    channels, use_conv = _timm_channels(author), author.argument('use_conv', True)
    author.ignore_arguments(*author.ctor)  # it takes any others, without effect
    if use_conv:
        return blocks.CoordinateAttention(channels, mode='strip', **_depthwise(author))
    for branch in 'rows', 'columns':  # the means as they are
        author.converted[f'{branch}.conv.weight'] = torch.ones(channels, 1, 1)
    return blocks.CoordinateAttention(channels, mode='strip', kernel_size=1)


def _depthwise(author: AuthorModule) -> dict[str, Any]:
    """Convert timm's depthwise convolutions, (C, 1, k, 1) and (C, 1, 1, k)."""
    kernel_size, bias = author.tensor('conv_h.weight').numel(), 'conv_h.bias' in author.tensors
    kernel_size //= len(author.tensor('conv_h.weight'))
    for theirs, ours in ('conv_h', 'rows.conv'), ('conv_w', 'columns.conv'):
        author.converted[f'{ours}.weight'] = author.tensor(f'{theirs}.weight').flatten(2)
        author.drop(f'{theirs}.weight')
        author.rename({theirs: ours})
    return dict(kernel_size=kernel_size, bias=bias)


def _timm_channels(author: AuthorModule, act: str | None = None, norm: str | None = None) -> int:
    """The channels, once the arguments that ours does not have are checked."""
    expected = dict(act_layer=act, norm_layer=norm, gate_layer='sigmoid')
    for argument, wanted in expected.items():
        if wanted is not None and argument in author.ctor:
            value = author.argument(argument)
            if _layer_name(value) != wanted:
                author.fail(f'{argument}={value!r}, allowed {wanted}')
    if author.argument('has_skip', False):
        author.fail('has_skip=True adds the input; ours is the gate alone: add it outside')
    author.ignore_arguments('act_layer', 'norm_layer', 'gate_layer', 'bias', 'device', 'dtype')
    return author.channels('channels')


def _layer_name(layer: Any) -> str:
    """Name of a class, or of timm's name for it, in one spelling: 'batchnorm2d', 'hardswish'."""
    name = str(getattr(layer, '__name__', layer)).lower().replace('_', '')
    return 'silu' if name == 'swish' else name


def _ignore_width(author: AuthorModule) -> None:
    """The hidden width is in the weights."""
    author.ignore_arguments('rd_ratio', 'rd_channels', 'rd_divisor', 'se_factor')


def triplet(author: AuthorModule) -> nn.Module:
    """Both files: gates called cw, hc, hw, or ChannelGateH, ChannelGateW, SpatialGate."""
    channels = author.channels('gate_channels', author.in_channels)
    if channels is None:
        author.fail('its constructor has no channels: give in_channels, those of the input')
    author.ignore_arguments('reduction_ratio', 'pool_types')  # left over from CBAM
    spatial = not author.argument('no_spatial', False)
    names = {'cw': 'ChannelGateH', 'hc': 'ChannelGateW', 'hw': 'SpatialGate'}
    for ours, theirs in names.items():
        author.rename({f'{theirs}.spatial': ours, f'{ours}.conv': ours})
    if 'cw.conv.weight' not in author.converted:
        author.fail('tensor cw.conv.conv.weight or ChannelGateH.spatial.conv.weight is missing')
    kernel_size = author.converted['cw.conv.weight'].shape[-1]
    return blocks.TripletAttention(channels, kernel_size=kernel_size, spatial=spatial)
