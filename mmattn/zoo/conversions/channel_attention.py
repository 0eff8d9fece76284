"""Authors' channel and spatial gates: SE, ECA, scSE, CMPE-SE, SK, CBAM, BAM, SGE, SA."""

from collections.abc import Callable

import torch
from torch import nn

from mmattn import blocks

from ..author_module import AuthorModule


def se(author: AuthorModule) -> nn.Module:
    bias = 'fc.0.bias' in author.tensors
    author.rename({'fc.0': 'fc1', 'fc.2': 'fc2'})
    return blocks.SE(
        author.channels('channel'), reduction=author.argument('reduction', 16), bias=bias
    )


def timm_se(author: AuthorModule) -> nn.Module:
    channels, hidden = author.channels('channels'), len(author.tensor('fc1.weight'))
    author.ignore_arguments('rd_ratio', 'rd_channels', 'rd_divisor')  # the width is in the weights
    bias = author.argument('bias', 'fc1.bias' in author.tensors)
    for name in 'fc1.weight', 'fc2.weight':
        author.converted[name] = author.tensor(name).flatten(1)
        author.drop(name)
    author.keep('fc1', 'fc2')
    return blocks.SE(channels, reduction=_reduction(author, channels, hidden), bias=bias)


def _reduction(author: AuthorModule, channels: int, width: int) -> int:
    """The reduction r with channels // r == width."""
    reduction = channels // width if 1 <= width <= channels else 0
    if not reduction or channels // reduction != width:
        author.fail(f'width {width} is no whole fraction of {channels} channels')
    return reduction


def eca(author: AuthorModule) -> nn.Module:
    """The kernel size is read from the weight: the published sizes follow no rule."""
    name = 'channel' if author.cls == 'eca_layer' else 'channels'
    channels = author.channels(name, author.in_channels)
    if channels is None:
        author.fail('its constructor has no channels: give in_channels, those of the input')
    author.ignore_arguments('k_size', 'kernel_size', 'gamma', 'beta', 'act_layer')
    author.ignore_arguments('rd_ratio', 'rd_channels', 'rd_divisor')  # of the MLP
    if author.argument('use_mlp', False):
        author.fail('use_mlp=True, an experiment of timm, is not followed; allowed False')
    if author.argument('gate_layer', 'sigmoid') != 'sigmoid':
        author.fail(f'gate_layer={author.ctor["gate_layer"]!r}, allowed sigmoid')
    kernel_size = author.tensor('conv.weight').shape[-1]
    author.keep('conv')
    return blocks.ECA(channels, kernel_size=kernel_size, circular=author.cls == 'CecaModule')


_SCSE_CHANNEL_KEYS = {'fc1': 'channel.fc1', 'fc2': 'channel.fc2'}
_SCSE_KEYS = {f'cSE.{k}': v for k, v in _SCSE_CHANNEL_KEYS.items()} | {'sSE.conv': 'spatial.conv'}


def scse(fusion: str) -> Callable[[AuthorModule], nn.Module]:
    def build(author: AuthorModule) -> nn.Module:
        one_gate = dict(channel=_SCSE_CHANNEL_KEYS, spatial={'conv': 'spatial.conv'})
        author.rename(one_gate.get(fusion, _SCSE_KEYS))
        reduction = author.argument('reduction_ratio', 2) if fusion != 'spatial' else 2
        return blocks.SCSE(author.channels('num_channels'), reduction=reduction, fusion=fusion)

    return build


def cmpese(author: AuthorModule) -> nn.Module:
    version = author.argument('version', None) or _cmpese_version(author)
    views = {
        'doublefc': 'double_fc',
        '1x1': 'pair1x1',
        '2x1': 'pair2x1',
        '3x3': 'fold3x3',
    }
    if version not in views:
        author.fail(f'{version=}, allowed {", ".join(views)}')
    if _cmpese_version(author) not in (None, version):
        author.fail(f'{version=} contradicts the class')
    channels, reduction = author.channels('channels'), author.argument('net_se_ratio', 16)
    height, fold = author.argument('reimage_k', None), author.argument('fold', None)
    base = author.argument('multi_map_base_channels', None)
    ratio = author.argument('cmpe_se_ratio', 16)
    if version == 'doublefc':
        table = {'input_conv.1': 'fc_residual', 'input_x.1': 'fc_identity', '0': 'fc_gate'}
        for theirs, ours in table.items():
            theirs = f'net_se_{theirs}' if theirs != '0' else 'net_se.0'
            author.converted[f'{ours}.weight'] = author.tensor(f'{theirs}.weight').flatten(1)
            author.drop(f'{theirs}.weight')
        return blocks.CMPESE(channels, reduction=reduction, view='double_fc')
    options = {}
    if version == '3x3':
        fold = fold or ('resnet' if author.cls.startswith('PreAct') else 'wrn')
        if fold not in ('wrn', 'resnet'):
            author.fail(f'{fold=}, allowed wrn, resnet')
        height = 10 if height is None else height
        if channels % height:
            author.fail(f'reimage_k={height}, but it must divide channels={channels}')
        options['fold_height'] = height if fold == 'wrn' else channels // height
    maps = len(author.tensor('Multi_Map.0.weight'))
    if base is not None and base // ratio != maps:
        author.fail(
            f'multi_map_base_channels={base} over cmpe_se_ratio={ratio} is {base // ratio} maps, '
            f'but Multi_Map.0.weight has {maps}'
        )
    author.rename({'Multi_Map.0': 'maps.conv', 'Multi_Map.1': 'maps.bn'})
    author.rename({'net_SE.1': 'fc1', 'net_SE.2': 'fc2'})
    block = blocks.CMPESE(channels, reduction=reduction, view=views[version], **options)
    _match_maps(author, maps, channels // reduction)
    return block


def _cmpese_version(author: AuthorModule) -> str | None:
    for ending, version in ('DoubleFC', 'doublefc'), ('1x1', '1x1'), ('2x1', '2x1'), ('3x3', '3x3'):
        if author.cls.endswith(ending):
            return version
    return None


def _match_maps(author: AuthorModule, author_maps: int, our_maps: int) -> None:
    """Only the mean over the maps counts, so fewer maps can be written as more."""
    if author_maps > our_maps:
        author.fail(
            f'{author_maps} maps, but ours has channels // net_se_ratio = {our_maps}, '
            'allowed up to that'
        )
    names = [key for key, v in author.converted.items() if key.startswith('maps.') and v.dim()]
    if our_maps % author_maps == 0:
        for key in names:
            author.converted[key] = torch.cat([author.converted[key]] * (our_maps // author_maps))
        return
    for key in names:  # added maps are 0 after the norm
        value = author.converted[key]
        fill = 1 if key.endswith(('running_var', 'conv.weight')) else 0
        if key in ('maps.bn.weight', 'maps.bn.bias'):
            value = value * our_maps / author_maps
        extra = value.new_full((our_maps - author_maps, *value.shape[1:]), fill)
        author.converted[key] = torch.cat([value, extra])


def sk_unit(author: AuthorModule) -> nn.Module:
    author.keep('convs', 'fc1', 'fc2')
    return blocks.SKConv2d(
        author.channels('channels'),
        branches=author.argument('M', 2),
        groups=author.argument('G', 32),
        reduction=author.argument('r', 16),
        min_channels=author.argument('L', 32),
        stride=author.argument('stride', 1),
        padding=1,
    )


def cbam(author: AuthorModule) -> nn.Module:
    author.rename({'ChannelGate.mlp.1': 'channel.fc1', 'ChannelGate.mlp.3': 'channel.fc2'})
    author.rename(
        {'SpatialGate.spatial.conv': 'spatial.conv', 'SpatialGate.spatial.bn': 'spatial.bn'}
    )
    return blocks.CBAM(
        author.channels('gate_channels'),
        reduction=author.argument('reduction_ratio', 16),
        pool_types=tuple(author.argument('pool_types', ('avg', 'max'))),
        spatial=not author.argument('no_spatial', False),
    )


def cbam_channel_gate(author: AuthorModule) -> nn.Module:
    author.rename({'mlp.1': 'channel.fc1', 'mlp.3': 'channel.fc2'})
    return blocks.CBAM(
        author.channels('gate_channels'),
        reduction=author.argument('reduction_ratio', 16),
        pool_types=tuple(author.argument('pool_types', ('avg', 'max'))),
        spatial=False,
    )


def bam(author: AuthorModule) -> nn.Module:
    channel, spatial = 'channel_att.gate_c.gate_c', 'spatial_att.gate_s.gate_s'
    author.rename(
        {
            f'{channel}_fc_0': 'channel.fc1',
            f'{channel}_bn_1': 'channel.bn',
            f'{channel}_fc_final': 'channel.fc2',
            f'{spatial}_conv_reduce0': 'spatial.reduce.conv',
            f'{spatial}_bn_reduce0': 'spatial.reduce.bn',
            f'{spatial}_conv_di_0': 'spatial.convs.0.conv',
            f'{spatial}_bn_di_0': 'spatial.convs.0.bn',
            f'{spatial}_conv_di_1': 'spatial.convs.1.conv',
            f'{spatial}_bn_di_1': 'spatial.convs.1.bn',
            f'{spatial}_conv_final': 'spatial.final',
        }
    )
    return blocks.BAM(author.channels('gate_channel'), fusion='mul')


def sge(author: AuthorModule) -> nn.Module:
    groups = author.argument('groups', 64)
    if author.in_channels is None:
        author.fail('its constructor has no channels: give in_channels, those of the input')
    author.keep('weight', 'bias')
    return blocks.SGE(author.in_channels, groups=groups)


def shuffle_attention(author: AuthorModule) -> nn.Module:
    author.keep('cweight', 'cbias', 'sweight', 'sbias', 'gn')
    return blocks.ShuffleAttention(author.channels('channel'), groups=author.argument('groups', 64))
