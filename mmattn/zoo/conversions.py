"""How the arguments and tensors of each author's class are called in ours.

One function a class: it takes what it needs from the author's side and returns our module; whatever
it leaves is reported by `from_author`. What the classes compute, and where ours differs, is in the
header of each block.
"""

import inspect
from collections.abc import Callable

import torch
from torch import nn

from mmattn import blocks
from mmattn.blocks.residual_attention import ResidualUnit
from mmattn.models import DAHead

from .authors import Author

_BN = dict(type='BN')


def _se(a: Author) -> nn.Module:
    bias = 'fc.0.bias' in a.theirs
    a.rename({'fc.0': 'fc1', 'fc.2': 'fc2'})
    return blocks.SE(a.channels('channel'), reduction=a.get('reduction', 16), bias=bias)


def _se_timm(a: Author) -> nn.Module:
    channels, hidden = a.channels('channels'), len(a.tensor('fc1.weight'))
    a.ignore('rd_ratio', 'rd_channels', 'rd_divisor')  # the width is in the weights
    bias = a.get('bias', 'fc1.bias' in a.theirs)
    for name in 'fc1.weight', 'fc2.weight':
        a.ours[name] = a.tensor(name).flatten(1)
        a.drop(name)
    a.keep('fc1', 'fc2')
    return blocks.SE(channels, reduction=_divisor(a, channels, hidden), bias=bias)


def _divisor(a: Author, channels: int, width: int) -> int:
    """The reduction r with channels // r == width."""
    reduction = channels // width if 1 <= width <= channels else 0
    if not reduction or channels // reduction != width:
        a.fail(f'width {width} is no whole fraction of {channels} channels')
    return reduction


def _scse(fusion: str, theirs: dict[str, str]) -> Callable[[Author], nn.Module]:
    def build(a: Author) -> nn.Module:
        a.rename(theirs)
        reduction = a.get('reduction_ratio', 2) if fusion != 'spatial' else 2
        return blocks.SCSE(a.channels('num_channels'), reduction=reduction, fusion=fusion)

    return build


_CHANNEL = {'fc1': 'channel.fc1', 'fc2': 'channel.fc2'}
_BOTH = {f'cSE.{k}': v for k, v in _CHANNEL.items()} | {'sSE.conv': 'spatial.conv'}


def _cmpese(a: Author) -> nn.Module:
    version = a.get('version', None) or _cmpese_version(a)
    views = {
        'doublefc': 'double_fc',
        '1x1': 'pair1x1',
        '2x1': 'pair2x1',
        '3x3': 'fold3x3',
    }
    if version not in views:
        a.fail(f'{version=}, allowed {", ".join(views)}')
    if _cmpese_version(a) not in (None, version):
        a.fail(f'{version=} contradicts the class')
    channels, reduction = a.channels('channels'), a.get('net_se_ratio', 16)
    height, fold = a.get('reimage_k', None), a.get('fold', None)
    base, ratio = a.get('multi_map_base_channels', None), a.get('cmpe_se_ratio', 16)
    if version == 'doublefc':
        table = {'input_conv.1': 'fc_residual', 'input_x.1': 'fc_identity', '0': 'fc_gate'}
        for theirs, ours in table.items():
            theirs = f'net_se_{theirs}' if theirs != '0' else 'net_se.0'
            a.ours[f'{ours}.weight'] = a.tensor(f'{theirs}.weight').flatten(1)
            a.drop(f'{theirs}.weight')
        return blocks.CMPESE(channels, reduction=reduction, view='double_fc')
    options = {}
    if version == '3x3':
        fold = fold or ('resnet' if a.cls.startswith('PreAct') else 'wrn')
        if fold not in ('wrn', 'resnet'):
            a.fail(f'{fold=}, allowed wrn, resnet')
        height = 10 if height is None else height
        if channels % height:
            a.fail(f'reimage_k={height}, but it must divide channels={channels}')
        options['fold_height'] = height if fold == 'wrn' else channels // height
    maps = len(a.tensor('Multi_Map.0.weight'))
    if base is not None and base // ratio != maps:
        a.fail(
            f'multi_map_base_channels={base} over cmpe_se_ratio={ratio} is {base // ratio} maps, '
            f'but Multi_Map.0.weight has {maps}'
        )
    a.rename({'Multi_Map.0': 'maps.conv', 'Multi_Map.1': 'maps.bn'})
    a.rename({'net_SE.1': 'fc1', 'net_SE.2': 'fc2'})
    block = blocks.CMPESE(channels, reduction=reduction, view=views[version], **options)
    _match_maps(a, maps, channels // reduction)
    return block


def _cmpese_version(a: Author) -> str | None:
    for ending, version in ('DoubleFC', 'doublefc'), ('1x1', '1x1'), ('2x1', '2x1'), ('3x3', '3x3'):
        if a.cls.endswith(ending):
            return version
    return None


def _match_maps(a: Author, theirs: int, ours: int) -> None:
    """Only the mean over the maps counts, so fewer maps can be written as more."""
    if theirs > ours:
        a.fail(f'{theirs} maps, but ours has channels // net_se_ratio = {ours}, allowed up to that')
    names = [key for key in a.ours if key.startswith('maps.') and a.ours[key].dim()]
    if ours % theirs == 0:
        for key in names:
            a.ours[key] = torch.cat([a.ours[key]] * (ours // theirs))
        return
    for key in names:  # further maps are 0 after the norm
        value = a.ours[key]
        fill = 1 if key.endswith(('running_var', 'conv.weight')) else 0
        if key in ('maps.bn.weight', 'maps.bn.bias'):
            value = value * ours / theirs
        extra = value.new_full((ours - theirs, *value.shape[1:]), fill)
        a.ours[key] = torch.cat([value, extra])


def _sk(a: Author) -> nn.Module:
    a.keep('convs', 'fc1', 'fc2')
    return blocks.SKConv2d(
        a.channels('channels'),
        branches=a.get('M', 2),
        groups=a.get('G', 32),
        reduction=a.get('r', 16),
        min_channels=a.get('L', 32),
        stride=a.get('stride', 1),
        padding=1,
    )


def _cbam(a: Author) -> nn.Module:
    a.rename({'ChannelGate.mlp.1': 'channel.fc1', 'ChannelGate.mlp.3': 'channel.fc2'})
    a.rename({'SpatialGate.spatial.conv': 'spatial.conv', 'SpatialGate.spatial.bn': 'spatial.bn'})
    return blocks.CBAM(
        a.channels('gate_channels'),
        reduction=a.get('reduction_ratio', 16),
        pool_types=tuple(a.get('pool_types', ('avg', 'max'))),
        spatial=not a.get('no_spatial', False),
    )


def _cbam_channel(a: Author) -> nn.Module:
    a.rename({'mlp.1': 'channel.fc1', 'mlp.3': 'channel.fc2'})
    return blocks.CBAM(
        a.channels('gate_channels'),
        reduction=a.get('reduction_ratio', 16),
        pool_types=tuple(a.get('pool_types', ('avg', 'max'))),
        spatial=False,
    )


def _bam(a: Author) -> nn.Module:
    channel, spatial = 'channel_att.gate_c.gate_c', 'spatial_att.gate_s.gate_s'
    a.rename(
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
    return blocks.BAM(a.channels('gate_channel'), fusion='mul')


def _sge(a: Author) -> nn.Module:
    groups = a.get('groups', 64)
    if a.in_channels is None:
        a.fail('its constructor has no channels: give in_channels, those of the input')
    a.keep('weight', 'bias')
    return blocks.SGE(a.in_channels, groups=groups)


def _sa(a: Author) -> nn.Module:
    a.keep('cweight', 'cbias', 'sweight', 'sbias', 'gn')
    return blocks.ShuffleAttention(a.channels('channel'), groups=a.get('groups', 64))


def _gc(a: Author) -> nn.Module:
    name = 'in_channels' if 'in_channels' in a.ctor else 'inplanes'  # MMCV's, the authors'
    a.keep('conv_mask', 'channel_add_conv', 'channel_mul_conv')
    return blocks.ContextBlock(
        a.channels(name),
        a.get('ratio'),
        a.get('pooling_type', 'att'),
        tuple(a.get('fusion_types', ('channel_add',))),
    )


def _snl(a: Author) -> nn.Module:
    a.keep('conv_mask', 'conv_v')
    return blocks.SimplifiedNonLocal(a.channels('channels'))


def _nl_alexhex7(a: Author) -> nn.Module:
    channels, inter = a.channels('in_channels'), a.get('inter_channels', None)
    inter = max(channels // 2, 1) if inter is None else inter
    if channels % inter and inter != max(channels // 2, 1):
        a.fail(f'inter_channels={inter}, allowed divisors of in_channels={channels}, or half')
    sub_sample, norm = a.get('sub_sample', True), a.get('bn_layer', True)
    mode = _nl_mode(a)
    for name in 'g', 'theta', 'phi':
        a.rename({f'{name}.0': f'{name}.0.conv'} if sub_sample and name != 'theta' else {})
        a.rename({name: f'{name}.conv'})
    a.rename({'concat_project.0': 'concat_project.conv'})
    if norm:
        a.rename({'W.0.weight': 'conv_out.conv.weight', 'W.1': 'conv_out.bn'})
        if 'conv_out.bn.running_mean' in a.ours:
            a.fold_bias('W.0.bias', 'conv_out.bn')
    else:
        a.rename({'W': 'conv_out.conv'})
    return blocks.NonLocal2d(
        channels,
        sub_sample=sub_sample,
        reduction=channels // inter if channels % inter == 0 else 2,
        use_scale=False,
        norm_cfg=_BN if norm else None,
        mode=mode,
    )


def _nl_mode(a: Author) -> str:
    """The four files of the repository have one class name: the file tells, else the tensors."""
    modes = ('embedded_gaussian', 'gaussian', 'dot_product', 'concatenation')
    named = [mode for mode in modes if f'non_local_{mode}' in a.path]
    if a.path and not named:
        a.fail(f'path={a.path!r} names no mode, allowed lib/non_local_<mode>.py of {modes}')
    has_theta = any(key.startswith('theta.') for key in a.theirs)
    concatenates = any(key.startswith('concat_project.') for key in a.theirs)
    if named:
        fits = dict(gaussian=not has_theta, concatenation=concatenates)
        if not fits.get(named[0], has_theta and not concatenates):
            a.fail(f'path={a.path!r} says {named[0]}, but the tensors are of another mode')
        return named[0]
    if concatenates:
        return 'concatenation'
    if has_theta:
        a.fail(
            'embedded_gaussian and dot_product have the same tensors: give path, the file of the '
            'class, such as lib/non_local_dot_product.py'
        )
    return 'gaussian'


def _nl_gcnet(a: Author) -> nn.Module:
    channels, reduction = a.channels('in_channels'), a.get('reduction', 2)
    use_scale, mode = a.get('use_scale', True), a.get('mode', 'embedded_gaussian')
    if mode not in ('embedded_gaussian', 'dot_product'):
        a.fail(f'{mode=}, allowed embedded_gaussian, dot_product')
    a.keep('g', 'theta', 'phi', 'conv_out')
    if mode == 'embedded_gaussian' and use_scale:  # it multiplies by sqrt(d) where ours divides
        width = max(channels // reduction, 1)
        for key in 'theta.conv.weight', 'theta.conv.bias':
            if key in a.ours:
                a.ours[key] = a.ours[key] * width
    return blocks.NonLocal2d(
        channels,
        conv_cfg=a.get('conv_cfg', None),
        reduction=reduction,
        use_scale=use_scale,
        norm_cfg=a.get('norm_cfg', None),
        mode=mode,
    )


def _ccnet(a: Author) -> nn.Module:
    name = 'in_channels' if 'in_channels' in a.ctor else 'in_dim'  # MMCV's, the authors'
    a.rename({'gamma.scale': 'gamma.scale'})
    a.rename({'gamma': 'gamma.scale'})
    a.keep('query_conv', 'key_conv', 'value_conv')
    return blocks.CrissCrossAttention(a.channels(name), recurrence=a.get('recurrence', 1))


def _pam(a: Author) -> nn.Module:
    a.rename({'query_conv': 'query_project', 'key_conv': 'key_project'})
    a.rename({'value_conv': 'value_project', 'gamma': 'gamma.scale'})
    return blocks.PAM(a.channels('in_dim'))


def _cam(a: Author) -> nn.Module:
    a.rename({'gamma': 'gamma.scale'})
    return blocks.CAM(a.channels('in_dim'))


def _danet_head(a: Author) -> nn.Module:
    norm = a.get('norm_layer', 'nn.BatchNorm2d')
    if getattr(norm, '__name__', str(norm).split('.')[-1]) != 'BatchNorm2d':
        a.fail(f'norm_layer={norm}, allowed nn.BatchNorm2d')
    channels, classes = a.channels('in_channels'), a.get('out_channels')
    for branch, ours, seg in ('a', 'pam', 6), ('c', 'cam', 7):
        middle = {'a': 'conv51', 'c': 'conv52'}[branch]
        module = {'a': 'sa', 'c': 'sc'}[branch]
        a.rename(
            {
                f'conv5{branch}.0': f'{ours}_in_conv.conv',
                f'conv5{branch}.1': f'{ours}_in_conv.bn',
                f'{module}.gamma': f'{ours}.gamma.scale',
                f'{module}.query_conv': f'{ours}.query_project',
                f'{module}.key_conv': f'{ours}.key_project',
                f'{module}.value_conv': f'{ours}.value_project',
                f'{middle}.0': f'{ours}_out_conv.conv',
                f'{middle}.1': f'{ours}_out_conv.bn',
                f'conv{seg}.1': f'{ours}_conv_seg',
            }
        )
    a.rename({'conv8.1': 'conv_seg'})
    if channels < 32:
        a.fail(f'in_channels={channels}, allowed 32 and more: the attention has 1 / 32 of them')
    return DAHead(
        pam_channels=channels // 32,
        in_channels=channels,
        channels=channels // 4,
        num_classes=classes,
        norm_cfg=_BN,
        dropout_ratio=0.1,
    )


def _ann_stages(a: Author, shared: bool) -> tuple[int, tuple[int, ...]]:
    """Convert `stages.*` and `conv_bn_dropout`; returns channels and the pool scales."""
    key_width, value_width = a.get('key_channels'), a.get('value_channels')
    width = max(key_width, value_width)
    norm = a.get('norm_type', 'batchnorm')
    if norm not in ('batchnorm', None):
        a.fail(f'norm_type={norm!r}, allowed batchnorm')
    a.ignore('dropout')  # ours has none inside the block
    sizes = a.get('sizes', (1,))
    for i in range(len(sizes)):
        name = f'stages.{i}'
        for theirs, ours in ('f_key', 'key_project'), ('f_query', 'query_project'):
            a.rename(
                {
                    f'{name}.{theirs}.0.weight': f'{name}.{ours}.conv.weight',
                    f'{name}.{theirs}.1.0': f'{name}.{ours}.bn',
                }
            )
            a.tensor(f'{name}.{theirs}.0.bias')
            if f'{name}.{ours}.bn.running_mean' not in a.ours:
                a.fail(f'tensor {name}.{theirs}.1.0.running_mean is missing')
            a.fold_bias(f'{name}.{theirs}.0.bias', f'{name}.{ours}.bn')
        a.rename({f'{name}.f_value': f'{name}.value_project', f'{name}.W': f'{name}.out_project'})
        _ann_widths(a, name, key_width, value_width)
        if shared:
            for part in 'conv.weight', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var':
                pair = [a.ours[f'{name}.{k}_project.{part}'] for k in ('key', 'query')]
                if not torch.equal(*pair):
                    a.fail(f'{name}: f_key and f_query are one module, but their {part} differ')
    return width, tuple(a.get('psp_size', (1, 3, 6, 8)))


def _ann_widths(a: Author, name: str, key_width: int, value_width: int) -> None:
    """Widen keys or values with zeros, as ours have one width; exact."""
    if value_width < key_width:
        extra = key_width - value_width
        for key, axis in ('value_project.weight', 0), ('value_project.bias', 0):
            _pad(a, f'{name}.{key}', axis, extra)
        _pad(a, f'{name}.out_project.weight', 1, extra)
    elif value_width > key_width:
        extra = value_width - key_width
        # logits are divided by the root of the width, and relu(BN) grows with the norm's weights
        factor = (value_width / key_width) ** 0.25
        for part in 'key_project', 'query_project':
            for key, fill in ('weight', 0), ('bias', 0), ('running_mean', 0), ('running_var', 1):
                full = f'{name}.{part}.bn.{key}'
                if key in ('weight', 'bias'):
                    a.ours[full] = a.ours[full] * factor
                _pad(a, full, 0, extra, fill)
            _pad(a, f'{name}.{part}.conv.weight', 0, extra)


def _pad(a: Author, key: str, axis: int, extra: int, fill: float = 0) -> None:
    value = a.ours[key]
    shape = list(value.shape)
    shape[axis] = extra
    a.ours[key] = torch.cat([value, value.new_full(shape, fill)], axis)


def _apnb(a: Author) -> nn.Module:
    channels, out_channels = a.channels('in_channels'), a.get('out_channels')
    if out_channels != channels:
        a.fail(f"{out_channels=}, but the authors' last convolution needs in_channels={channels}")
    sizes = tuple(a.get('sizes', (1,)))
    if any(size != 1 for size in sizes):
        a.fail(f"{sizes=}, allowed 1: the authors' code fails on others")
    width, pools = _ann_stages(a, shared=True)
    a.rename(
        {
            'conv_bn_dropout.0.weight': 'bottleneck.conv.weight',
            'conv_bn_dropout.1.0': 'bottleneck.bn',
        }
    )
    _fold_bottleneck(a)
    return blocks.APNB(channels, width, out_channels, (1,) * len(sizes), pools, None, _BN)


def _afnb(a: Author) -> nn.Module:
    low, high = a.channels('low_in_channels'), a.get('high_in_channels')
    sizes = a.get('sizes', (1,))  # how many; their values have no effect in the authors' code
    width, pools = _ann_stages(a, shared=False)
    a.rename(
        {'conv_bn_dropout.0.weight': 'bottleneck.conv.weight', 'conv_bn_dropout.1': 'bottleneck.bn'}
    )
    _fold_bottleneck(a)
    out = a.get('out_channels')
    return blocks.AFNB(low, high, width, out, (1,) * len(sizes), pools, None, _BN)


def _fold_bottleneck(a: Author) -> None:
    if 'bottleneck.bn.running_mean' not in a.ours:
        a.fail('tensor conv_bn_dropout.1 is missing')
    a.fold_bias('conv_bn_dropout.0.bias', 'bottleneck.bn')


def _ran(a: Author) -> nn.Module:
    channels = a.channels('in_channels')
    if a.get('out_channels', channels) != channels:
        a.fail(f'out_channels={a.get("out_channels")}, but it must equal in_channels={channels}')
    a.ignore('size1', 'size2', 'size3')  # the maps tell their sizes
    a.drop(*(key for key in list(a.theirs) if key.endswith('conv4.weight')))  # unused there
    a.rename(
        {
            'first_residual_blocks': 'pre.0',
            'trunk_branches': 'trunk',
            'softmax1_blocks': 'down.0.0',
            'skip1_connection_residual_block': 'skip.0',
            'softmax2_blocks': 'down.1.0',
            'skip2_connection_residual_block': 'skip.1',
            'softmax3_blocks': 'bottom',
            'softmax4_blocks': 'up.1.0',
            'softmax5_blocks': 'up.0.0',
            'softmax6_blocks.0': 'gate.bn1',
            'softmax6_blocks.2': 'gate.conv1',
            'softmax6_blocks.3': 'gate.bn2',
            'softmax6_blocks.5': 'gate.conv2',
            'last_blocks': 'post.0',
        }
    )
    return blocks.ResidualAttention(channels, depth=3)


def _ran_unit(a: Author) -> nn.Module:
    channels = a.channels('input_channels')
    out, stride = a.get('output_channels', channels), a.get('stride', 1)
    unit = ResidualUnit(channels, out, stride)
    if unit.conv4 is None:
        a.drop('conv4.weight')  # unused there
    a.keep('bn1', 'conv1', 'bn2', 'conv2', 'bn3', 'conv3', 'conv4')
    return unit


def _stn(a: Author) -> nn.Module:
    if a.in_channels not in (None, 1):
        a.fail(f'in_channels={a.in_channels}, allowed 1: it reads grey images')
    localization = nn.Sequential(
        nn.Conv2d(1, 8, 7),
        nn.MaxPool2d(2, 2),
        nn.ReLU(True),
        nn.Conv2d(8, 10, 5),
        nn.MaxPool2d(2, 2),
        nn.ReLU(True),
        nn.Flatten(),
        nn.Linear(90, 32),
        nn.ReLU(True),
        nn.Linear(32, 6),
    )
    a.rename({'fc_loc.0': 'localization.7', 'fc_loc.2': 'localization.9'})
    a.keep('localization')
    return blocks.SpatialTransformer(
        1, localization=localization, padding_mode='zeros', align_corners=False
    )


def _deformable(name: str) -> Callable[[Author], nn.Module]:
    def build(a: Author) -> nn.Module:
        try:
            from mmcv import ops
        except ImportError as error:
            raise ValueError(
                f'from_author: {name} is a compiled operator of mmcv, which cannot be imported '
                f'({error}). Install mmcv with its operators.'
            ) from error
        layer = getattr(ops, name)
        known = {n for base in layer.__mro__ for n in _parameters(base)}
        arguments = {key: a.get(key) for key in list(a.ctor) if key in known}
        a.channels('in_channels')
        a.keep()
        return layer(**arguments)

    return build


def _parameters(base: type) -> list[str]:
    return list(inspect.signature(base.__init__).parameters) if base is not object else []


def _ours(cls: str) -> Callable[[Author], nn.Module]:
    """Classes of MMCV and MMSegmentation, whose arguments and keys ours has."""

    def build(a: Author) -> nn.Module:
        block = getattr(blocks, cls)
        names = [n for n in inspect.signature(block).parameters if n != 'init']
        if 'in_channels' in a.ctor:
            a.channels('in_channels')
        a.keep()
        return block(**{name: a.get(name) for name in names if name in a.ctor})

    return build


def _either(cls: str, authors: Callable[[Author], nn.Module]) -> Callable[[Author], nn.Module]:
    """MMSegmentation's class of the same name has `channels`, the authors' has `key_channels`."""
    stock = _ours(cls)
    return lambda a: stock(a) if 'channels' in a.ctor else authors(a)


_CMPESE = {
    f'{start}CMPESEBlock{version}': _cmpese
    for start in ('', 'PreActBottleneck', 'PreActBasic')
    for version in ('DoubleFC', '1x1', '2x1', '3x3')
}
CLASSES: dict[str, dict[str, Callable[[Author], nn.Module]]] = {
    'se': {'SELayer': _se, 'SEModule': _se_timm},
    'scse': {
        'ChannelSELayer': _scse('channel', _CHANNEL),
        'SpatialSELayer': _scse('spatial', {'conv': 'spatial.conv'}),
        'ChannelSpatialSELayer': _scse('max', _BOTH),
        'cSE(x)+sSE(x)': _scse('add', _BOTH),
    },
    'cmpese': _CMPESE,
    'sk': {'SK unit': _sk},
    'cbam': {'CBAM': _cbam, 'ChannelGate': _cbam_channel},
    'bam': {'BAM': _bam},
    'sge': {'SpatialGroupEnhance': _sge},
    'sanet': {'sa_layer': _sa},
    'gc': {'ContextBlock': _gc},
    'snl': {'simplified non-local block': _snl},
    'nl': {
        'NONLocalBlock2D': _nl_alexhex7,
        'NonLocal2D': _nl_gcnet,
        'NonLocal2d': _ours('NonLocal2d'),
    },
    'ccnet': {'CrissCrossAttention': _ccnet},
    'ann': {'APNB': _either('APNB', _apnb), 'AFNB': _either('AFNB', _afnb)},
    'danet': {
        'PAM_Module': _pam,
        'CAM_Module': _cam,
        'DANetHead': _danet_head,
        'PAM': _ours('PAM'),
        'CAM': _ours('CAM'),
    },
    'ran': {'AttentionModule_pre': _ran, 'ResidualBlock': _ran_unit},
    'stn': {'Net.stn': _stn},
    'dcnv1': {
        'DeformConv2d': _deformable('DeformConv2d'),
        'DeformConv2dPack': _deformable('DeformConv2dPack'),
        'DCN': _deformable('DeformConv2dPack'),
    },
    'dcnv2': {
        'ModulatedDeformConv2d': _deformable('ModulatedDeformConv2d'),
        'ModulatedDeformConv2dPack': _deformable('ModulatedDeformConv2dPack'),
        'DCNv2': _deformable('ModulatedDeformConv2dPack'),
    },
}
# Classes that exist and are not followed: how the name starts, and why.
REFUSED: dict[str, dict[str, str]] = {
    'sk': {
        'Bottleneck': 'a changed block, with a dense and a grouped 3x3 of one reach and a residual '
        'of its own; ours is the unit of the paper and of the Caffe network (class "SK unit")'
    },
    'cbam': {'SpatialGate': 'the spatial gate alone; ours has it after a channel gate, as CBAM'},
    'bam': {
        'ChannelGate': 'one branch alone; ours is the whole module, BAM',
        'SpatialGate': 'one branch alone; ours is the whole module, BAM',
    },
    'nl': {
        'NONLocalBlock': 'only the 2-d class is followed; ours works on (N, C, H, W)',
        'NonLocal1d': 'only the 2-d class is followed; ours works on (N, C, H, W)',
        'NonLocal3d': 'only the 2-d class is followed; ours works on (N, C, H, W)',
        '_NonLocal': 'the base of three classes; name the 2-d one',
        'spacetime_nonlocal': 'it pools before its convolutions, which the arguments of MMCV, and '
        'so ours, cannot say; compose it from mmattn.ops.softmax_attention',
    },
    'ccnet': {
        'RCCAModule': 'a decode head with in-place activated norms; its attention is class '
        'CrissCrossAttention, a head for it is mmattn.CCHead'
    },
    'ran': {
        'AttentionModule_stage': 'it adds the trunk and the mask branch once more at each '
        'upsampling, against the network of the paper; class AttentionModule_pre has its data flow'
    },
    'stn': {
        'function': 'a function without weights: mmattn.ops.affine_sample',
        'spatial_transformer_network': 'it scales positions by size - 2 and clips corners before '
        'weighing them, so the identity transform moves the map; ours does not',
    },
}
