"""Authors' non-local and dual attention: NL, GC, SNL, BoTNet, CCNet, DANet."""

from torch import nn

from mmattn import blocks
from mmattn.compat import missing_module_error
from mmattn.registry import MODELS

from ..author_module import AuthorModule

_BN = dict(type='BN')


def global_context(author: AuthorModule) -> nn.Module:
    name = 'in_channels' if 'in_channels' in author.ctor else 'inplanes'  # MMCV's, the authors'
    author.keep('conv_mask', 'channel_add_conv', 'channel_mul_conv')
    return blocks.ContextBlock(
        author.channels(name),
        author.argument('ratio'),
        author.argument('pooling_type', 'att'),
        tuple(author.argument('fusion_types', ('channel_add',))),
    )


def simplified_non_local(author: AuthorModule) -> nn.Module:
    author.keep('conv_mask', 'conv_v')
    return blocks.SimplifiedNonLocal(author.channels('channels'))


def alexhex7_non_local(author: AuthorModule) -> nn.Module:
    channels, inter = author.channels('in_channels'), author.argument('inter_channels', None)
    inter = max(channels // 2, 1) if inter is None else inter
    if channels % inter and inter != max(channels // 2, 1):
        author.fail(f'inter_channels={inter}, allowed divisors of in_channels={channels}, or half')
    sub_sample, norm = author.argument('sub_sample', True), author.argument('bn_layer', True)
    mode = _alexhex7_mode(author)
    for name in 'g', 'theta', 'phi':
        author.rename({f'{name}.0': f'{name}.0.conv'} if sub_sample and name != 'theta' else {})
        author.rename({name: f'{name}.conv'})
    author.rename({'concat_project.0': 'concat_project.conv'})
    if norm:
        author.rename({'W.0.weight': 'conv_out.conv.weight', 'W.1': 'conv_out.bn'})
        if 'conv_out.bn.running_mean' in author.converted:
            author.fold_bias('W.0.bias', 'conv_out.bn')
    else:
        author.rename({'W': 'conv_out.conv'})
    return blocks.NonLocal2d(
        channels,
        sub_sample=sub_sample,
        reduction=channels // inter if channels % inter == 0 else 2,
        use_scale=False,
        norm_cfg=_BN if norm else None,
        mode=mode,
    )


def _alexhex7_mode(author: AuthorModule) -> str:
    """The mode, from the path or else the tensors: the class has one name in four files."""
    modes = ('embedded_gaussian', 'gaussian', 'dot_product', 'concatenation')
    named = [mode for mode in modes if f'non_local_{mode}' in author.path]
    if author.path and not named:
        author.fail(
            f'path={author.path!r} names no mode, allowed lib/non_local_<mode>.py of {modes}'
        )
    has_theta = any(key.startswith('theta.') for key in author.tensors)
    concatenates = any(key.startswith('concat_project.') for key in author.tensors)
    if named:
        fits = dict(gaussian=not has_theta, concatenation=concatenates)
        if not fits.get(named[0], has_theta and not concatenates):
            author.fail(
                f'path={author.path!r} names {named[0]}, but the tensors are of another mode'
            )
        return named[0]
    if concatenates:
        return 'concatenation'
    if has_theta:
        author.fail(
            'embedded_gaussian and dot_product have the same tensors: give path, the file of the '
            'class, such as lib/non_local_dot_product.py'
        )
    return 'gaussian'


def gcnet_non_local(author: AuthorModule) -> nn.Module:
    channels, reduction = author.channels('in_channels'), author.argument('reduction', 2)
    use_scale = author.argument('use_scale', True)
    mode = author.argument('mode', 'embedded_gaussian')
    if mode not in ('embedded_gaussian', 'dot_product'):
        author.fail(f'{mode=}, allowed embedded_gaussian, dot_product')
    author.keep('g', 'theta', 'phi', 'conv_out')
    if mode == 'embedded_gaussian' and use_scale:  # the author multiplies by sqrt(d), ours divides
        width = max(channels // reduction, 1)
        for key in 'theta.conv.weight', 'theta.conv.bias':
            if key in author.converted:
                author.converted[key] = author.converted[key] * width
    return blocks.NonLocal2d(
        channels,
        conv_cfg=author.argument('conv_cfg', None),
        reduction=reduction,
        use_scale=use_scale,
        norm_cfg=author.argument('norm_cfg', None),
        mode=mode,
    )


def bottleneck_attention(author: AuthorModule) -> nn.Module:
    table = author.tensor('pos_embed.height_rel')  # (2 H - 1, d)
    head_channels = author.argument('dim_head', None) or table.shape[1]
    sizes = [(len(author.tensor(f'pos_embed.{side}_rel')) + 1) // 2 for side in ('height', 'width')]
    size = author.argument('feat_size', None) or sizes
    author.ignore_arguments('qk_ratio', 'device', 'dtype')  # the table has the channels of a head
    author.keep('qkv')
    author.rename({f'pos_embed.{side}_rel': f'position.{side}' for side in ('height', 'width')})
    return blocks.MHSA(
        author.channels('dim'),
        author.argument('dim_out', None),
        heads=author.argument('num_heads', 4),
        head_channels=head_channels,
        bias=author.argument('qkv_bias', False),
        size=size if isinstance(size, int) else tuple(size),
        scale_position=author.argument('scale_pos_embed', False),
        stride=author.argument('stride', 1),
    )


def criss_cross(author: AuthorModule) -> nn.Module:
    name = 'in_channels' if 'in_channels' in author.ctor else 'in_dim'  # MMCV's, the authors'
    author.rename({'gamma.scale': 'gamma.scale'})
    author.rename({'gamma': 'gamma.scale'})
    author.keep('query_conv', 'key_conv', 'value_conv')
    return blocks.CrissCrossAttention(
        author.channels(name), recurrence=author.argument('recurrence', 1)
    )


def pam(author: AuthorModule) -> nn.Module:
    author.rename({'query_conv': 'query_project', 'key_conv': 'key_project'})
    author.rename({'value_conv': 'value_project', 'gamma': 'gamma.scale'})
    return blocks.PAM(author.channels('in_dim'))


def cam(author: AuthorModule) -> nn.Module:
    author.rename({'gamma': 'gamma.scale'})
    return blocks.CAM(author.channels('in_dim'))


def danet_head(author: AuthorModule) -> nn.Module:
    norm = author.argument('norm_layer', 'nn.BatchNorm2d')
    if getattr(norm, '__name__', str(norm).split('.')[-1]) != 'BatchNorm2d':
        author.fail(f'norm_layer={norm}, allowed nn.BatchNorm2d')
    channels, classes = author.channels('in_channels'), author.argument('out_channels')
    for branch, ours, seg in ('a', 'pam', 6), ('c', 'cam', 7):
        middle = {'a': 'conv51', 'c': 'conv52'}[branch]
        module = {'a': 'sa', 'c': 'sc'}[branch]
        author.rename(
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
    author.rename({'conv8.1': 'conv_seg'})
    if channels < 32:
        author.fail(
            f'in_channels={channels}, allowed 32 and more: the attention has 1 / 32 of them'
        )
    head = MODELS.get('DAHead')
    if head is None:
        raise missing_module_error('mmattn.DAHead', 'mmseg')
    return head(
        pam_channels=channels // 32,
        in_channels=channels,
        channels=channels // 4,
        num_classes=classes,
        norm_cfg=_BN,
        dropout_ratio=0.1,
    )
