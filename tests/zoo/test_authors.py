"""Authors' modules beyond the golden files: other arguments, and everything that is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmattn import blocks
from mmattn.benchmarks.authors_operations import ema
from mmattn.zoo import from_author


def draw(**shapes):
    """A state dict in float64; running variances and norm weights are positive."""
    found = {}
    for key, shape in shapes.items():
        value = torch.randn(shape, dtype=torch.float64) * 0.4
        found[key.replace('__', '.')] = value.abs() + 0.5 if 'running_var' in key else value
    return found


def norm(key, width):
    shapes = {f'{key}.{k}': (width,) for k in ('weight', 'bias', 'running_mean', 'running_var')}
    return draw(**shapes) | {f'{key}.num_batches_tracked': torch.tensor(3)}


def bn(x, state, key):
    values = [state[f'{key}.{k}'] for k in ('running_mean', 'running_var', 'weight', 'bias')]
    return F.batch_norm(x, *values)


def image(*shape):
    return torch.randn(shape, dtype=torch.float64)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def pyramid(x):
    return torch.cat([F.adaptive_avg_pool2d(x, n).flatten(2) for n in (1, 3, 6, 8)], 2)


def ann_state(keys, values, low, high, out, last):
    """The tensors of the authors' APNB and AFNB, in which every projection has a bias."""
    shapes = {}
    for part, channels in ('f_key', low), ('f_query', high):
        shapes |= {
            f'stages.0.{part}.0.weight': (keys, channels, 1, 1),
            f'stages.0.{part}.0.bias': (keys,),
        }
    shapes |= {'stages.0.f_value.weight': (values, low, 1, 1), 'stages.0.f_value.bias': (values,)}
    shapes |= {'stages.0.W.weight': (out, values, 1, 1), 'stages.0.W.bias': (out,)}
    shapes |= {
        'conv_bn_dropout.0.weight': (out, out + high, 1, 1),
        'conv_bn_dropout.0.bias': (out,),
    }
    state = draw(**shapes) | norm(last, out)
    return state | norm('stages.0.f_key.1.0', keys) | norm('stages.0.f_query.1.0', keys)


def ann(state, low, high, keys, last):
    """The authors' formula in their own tensors."""
    conv = lambda name, x: F.conv2d(x, state[f'{name}.weight'], state[f'{name}.bias'])  # noqa: E731
    k, q = (
        bn(conv(f'stages.0.{p}.0', x), state, f'stages.0.{p}.1.0').relu()
        for p, x in (('f_key', low), ('f_query', high))
    )
    v = pyramid(conv('stages.0.f_value', low))
    weights = (q.flatten(2).mT @ pyramid(k) * keys**-0.5).softmax(-1)
    context = conv('stages.0.W', (v @ weights.mT).unflatten(2, high.shape[2:]))
    return bn(conv('conv_bn_dropout.0', torch.cat([context, high], 1)), state, last)


@pytest.mark.parametrize('keys, values', [(4, 4), (6, 2), (3, 8)])
def test_ann_with_keys_and_values_of_different_width(keys, values):
    state = ann_state(keys, values, 5, 8, 6, 'conv_bn_dropout.1')
    ctor = dict(
        low_in_channels=5,
        high_in_channels=8,
        out_channels=6,
        key_channels=keys,
        value_channels=values,
        dropout=0.05,
        norm_type='batchnorm',
    )
    low, high = image(2, 5, 9, 7), image(2, 8, 4, 6)
    same(
        from_author('ann', 'AFNB', ctor, state)(low, high),
        ann(state, low, high, keys, 'conv_bn_dropout.1'),
    )
    state = ann_state(keys, values, 8, 8, 8, 'conv_bn_dropout.1.0')
    for key in [k for k in state if 'f_key' in k]:  # one module in the authors' code
        state[key.replace('f_key', 'f_query')] = state[key]
    ctor = dict(
        in_channels=8,
        out_channels=8,
        key_channels=keys,
        value_channels=values,
        dropout=0.05,
        norm_type='batchnorm',
    )
    x = image(2, 8, 9, 7)
    same(
        from_author('ann', 'APNB', ctor, state)(x),
        ann(state, x, x, keys, 'conv_bn_dropout.1.0').relu(),
    )


@pytest.mark.parametrize('maps, reduction', [(4, 4), (2, 4), (1, 4), (3, 4), (3, 8)])
@pytest.mark.parametrize('fold, k', [('wrn', 4), ('resnet', 8)])
def test_cmpese_with_fewer_maps_than_ours(maps, reduction, fold, k):
    channels, hidden = 32, 32 // reduction
    height = k if fold == 'wrn' else channels // k
    length = (2 * height - 2) * (channels // height - 2)
    state = draw(
        **{
            'Multi_Map.0.weight': (maps, 1, 3, 3),
            'net_SE.1.weight': (hidden, length),
            'net_SE.2.weight': (channels, hidden),
        }
    )
    state |= norm('Multi_Map.1', maps)
    ctor = dict(
        channels=channels,
        version='3x3',
        net_se_ratio=reduction,
        cmpe_se_ratio=1,
        reimage_k=k,
        fold=fold,
        multi_map_base_channels=maps,
    )
    u, x = image(2, channels, 3, 4), image(2, channels, 3, 4)
    found = from_author('cmpese', 'CMPESEBlock3x3', ctor, state)(u, x)
    rows = torch.stack([u.mean((2, 3)), x.mean((2, 3))], 1).reshape(2, 2, height, -1)
    picture = rows.transpose(1, 2).reshape(2, 1, 2 * height, -1)
    f = bn(F.conv2d(picture, state['Multi_Map.0.weight']), state, 'Multi_Map.1').mean(1).flatten(1)
    s = ((f @ state['net_SE.1.weight'].T).relu() @ state['net_SE.2.weight'].T).sigmoid()
    same(found, u * s[:, :, None, None] + x)


@pytest.mark.parametrize('inter', [None, 2, 4])
@pytest.mark.parametrize('normed', [True, False])
@pytest.mark.parametrize('sub_sample', [True, False])
@pytest.mark.parametrize('mode', ['gaussian', 'embedded_gaussian', 'dot_product', 'concatenation'])
def test_non_local_files(mode, sub_sample, normed, inter):
    channels, width = 8, inter or 4
    shapes, pooled = {}, '0.' if sub_sample else ''
    for name, middle in ('g', pooled), ('theta', ''), ('phi', pooled):
        if mode != 'gaussian' or name == 'g':
            shapes |= {
                f'{name}.{middle}weight': (width, channels, 1, 1),
                f'{name}.{middle}bias': (width,),
            }
    last = 'W.0' if normed else 'W'
    shapes |= {f'{last}.weight': (channels, width, 1, 1), f'{last}.bias': (channels,)}
    if mode == 'concatenation':
        shapes['concat_project.0.weight'] = (1, 2 * width, 1, 1)
    state = draw(**shapes) | (norm('W.1', channels) if normed else {})
    ctor = dict(in_channels=channels, inter_channels=inter, sub_sample=sub_sample, bn_layer=normed)
    found = from_author('nl', 'NONLocalBlock2D', ctor, state, path=f'lib/non_local_{mode}.py')

    x = image(2, channels, 5, 6)
    pool = (lambda t: F.max_pool2d(t, 2)) if sub_sample else (lambda t: t)
    conv = lambda name, t: F.conv2d(t, state[f'{name}weight'], state[f'{name}bias'])  # noqa: E731
    g = pool(conv(f'g.{pooled}', x)).flatten(2)
    if mode == 'gaussian':
        weights = (x.flatten(2).mT @ pool(x).flatten(2)).softmax(-1)
    else:
        theta, phi = conv('theta.', x).flatten(2), pool(conv(f'phi.{pooled}', x)).flatten(2)
        if mode == 'concatenation':
            pairs = torch.cat(
                [
                    theta[:, :, :, None].expand(-1, -1, -1, phi.shape[2]),
                    phi[:, :, None].expand(-1, -1, theta.shape[2], -1),
                ],
                1,
            )
            weights = F.conv2d(pairs, state['concat_project.0.weight'])[:, 0].relu() / phi.shape[2]
        else:
            logits = theta.mT @ phi
            weights = logits.softmax(-1) if mode == 'embedded_gaussian' else logits / phi.shape[2]
    z = conv(f'{last}.', (g @ weights.mT).unflatten(2, x.shape[2:]))
    same(found(x), x + (bn(z, state, 'W.1') if normed else z))


def test_the_mode_is_read_from_the_tensors_where_they_tell():
    gaussian = draw(
        **{'g.weight': (4, 8, 1, 1), 'g.bias': (4,), 'W.weight': (8, 4, 1, 1), 'W.bias': (8,)}
    )
    ctor = dict(in_channels=8, sub_sample=False, bn_layer=False)
    assert from_author('nl', 'NONLocalBlock2D', ctor, gaussian).mode == 'gaussian'
    pairs = draw(
        **{
            'theta.weight': (4, 8, 1, 1),
            'theta.bias': (4,),
            'phi.weight': (4, 8, 1, 1),
            'phi.bias': (4,),
        }
    )
    with pytest.raises(
        ValueError, match='embedded_gaussian and dot_product have the same tensors: give path'
    ):
        from_author('nl', 'NONLocalBlock2D', ctor, gaussian | pairs)
    concatenation = gaussian | pairs | draw(**{'concat_project.0.weight': (1, 8, 1, 1)})
    assert from_author('nl', 'NONLocalBlock2D', ctor, concatenation).mode == 'concatenation'
    with pytest.raises(ValueError, match='names gaussian, but the tensors are of another mode'):
        from_author('nl', 'NONLocalBlock2D', ctor, concatenation, path='lib/non_local_gaussian.py')


class Tutorial(nn.Module):
    """The layers of the tutorial's spatial transformer, sampled by torch."""

    def __init__(self):
        super().__init__()
        relu, pool = nn.ReLU, nn.MaxPool2d
        self.localization = nn.Sequential(
            nn.Conv2d(1, 8, 7), pool(2, 2), relu(), nn.Conv2d(8, 10, 5), pool(2, 2), relu()
        )
        self.fc_loc = nn.Sequential(nn.Linear(90, 32), relu(), nn.Linear(32, 6))

    def forward(self, x):
        theta = self.fc_loc(self.localization(x).flatten(1)).unflatten(1, (2, 3))
        grid = F.affine_grid(theta, x.shape, align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


def test_the_tutorials_spatial_transformer():
    theirs, x = Tutorial().double(), image(3, 1, 28, 28)
    same(from_author('stn', 'Net.stn', {}, theirs.state_dict())(x), theirs(x))


def test_timms_squeeze_and_excitation():
    state = draw(
        **{
            'fc1.weight': (8, 72, 1, 1),
            'fc1.bias': (8,),
            'fc2.weight': (72, 8, 1, 1),
            'fc2.bias': (72,),
        }
    )
    x = image(2, 72, 3, 4)
    h = F.conv2d(x.mean((2, 3), keepdim=True), state['fc1.weight'], state['fc1.bias']).relu()
    wanted = x * F.conv2d(h, state['fc2.weight'], state['fc2.bias']).sigmoid()
    same(
        from_author('se', 'SEModule', dict(channels=72, rd_ratio=1 / 16, rd_divisor=8), state)(x),
        wanted,
    )


@pytest.mark.openmmlab
def test_classes_of_mmcv_and_mmsegmentation_are_taken_as_they_are():
    from mmcv.cnn import ContextBlock, NonLocal2d
    from mmseg.models.decode_heads.da_head import PAM

    x = image(2, 16, 4, 5)
    for system, ctor, theirs in (
        ('gc', dict(in_channels=16, ratio=0.25), ContextBlock),
        ('nl', dict(in_channels=16, mode='concatenation', zeros_init=False), NonLocal2d),
        ('danet', dict(in_channels=16, channels=4), PAM),
    ):
        module = theirs(**ctor).double()
        found = from_author(system, theirs.__name__, ctor, module.state_dict())
        same(found(x), module(x))


def test_arrays_and_other_precisions():
    state = {
        k: v.float().numpy()
        for k, v in draw(**{'fc.0.weight': (2, 8), 'fc.2.weight': (8, 2)}).items()
    }
    block = from_author('se', 'SELayer', dict(channel=8, reduction=4), state)
    assert block.fc1.weight.dtype == torch.float32 and not block.training
    assert isinstance(block, blocks.SE)


@pytest.mark.parametrize('size', [(4, 5), (1, 6), (5, 1), (1, 1)])
@pytest.mark.parametrize(
    'channels, ctor', [(12, dict(factor=3, c2=None)), (32, {}), (8, dict(factor=1, c2=4))]
)
def test_ema(channels, ctor, size):
    width = channels // ctor.get('factor', 32)
    shapes = {'conv1x1.weight': (width, width, 1, 1), 'conv3x3.weight': (width, width, 3, 3)}
    names = 'conv1x1.bias', 'conv3x3.bias', 'gn.weight', 'gn.bias'
    state = draw(**shapes, **dict.fromkeys(names, (width,)))
    block = from_author('ema', 'EMA', dict(channels=channels) | ctor, state)
    x = image(2, channels, *size)
    same(block(x), ema(block)(x))


@pytest.mark.parametrize('size', [(4, 5), (1, 6), (1, 2)])
@pytest.mark.parametrize(
    'ctor, in_channels', [({}, None), ({}, 3), (dict(channels=None), 3), (dict(channels=3), None)]
)
def test_simam_with_or_without_channels(ctor, in_channels, size):
    block = from_author(
        'simam', 'simam_module', ctor | dict(e_lambda=0.3), {}, in_channels=in_channels
    )
    assert block.in_channels == (in_channels or ctor.get('channels'))
    x = image(2, 3, *size)
    same(
        block(x),
        x
        * (
            0.5 + (x - x.mean((2, 3), True)) ** 2 / (4 * (x.var((2, 3), keepdim=True) + 0.3))
        ).sigmoid(),
    )


SE = draw(**{'fc.0.weight': (2, 8), 'fc.2.weight': (8, 2)})
COORD = draw(
    **{'conv1.weight': (2, 8, 1, 1), 'conv_h.weight': (8, 2, 1, 1), 'conv_w.weight': (8, 2, 1, 1)}
) | norm('bn1', 2)
STRIP = draw(**{'conv_h.weight': (8, 1, 3, 1), 'conv_w.weight': (8, 1, 1, 3)})
TRIPLET = draw(**{f'{k}.conv.conv.weight': (1, 2, 3, 3) for k in ('cw', 'hc', 'hw')})
SGE = draw(**{'weight': (1, 4, 1, 1), 'bias': (1, 4, 1, 1)})
GATE = dict(in_channels=8, gating_channels=6)
MHSA = draw(
    **{
        'qkv.weight': (24, 8, 1, 1),
        'pos_embed.height_rel': (3, 2),
        'pos_embed.width_rel': (5, 2),
    }
)
REFUSED = {
    'system': ('xy', 'SELayer', {}, {}, {}, "system='xy', allowed ann, bam, cbam"),
    'class': ('se', 'SE', {}, {}, {}, "system 'se', class SE: unknown class, allowed SELayer"),
    'argument missing': ('se', 'SELayer', {}, SE, {}, 'argument channel is missing'),
    'argument unknown': ('se', 'SELayer', dict(channel=8, reduction=4, act=1), SE, {}, 'unknown argument act, allowed channel, reduction'),
    'argument of ours': ('se', 'SELayer', dict(channel=8, reduction=9), SE, {}, 'SE: reduction=9, allowed 1..in_channels=8'),
    'tensor unknown': ('se', 'SELayer', dict(channel=8, reduction=4), SE | dict(extra=torch.ones(1)), {}, 'unknown tensors: extra'),
    'tensor missing': ('se', 'SELayer', dict(channel=8, reduction=4), draw(**{'fc.0.weight': (2, 8)}), {}, 'missing fc2.weight'),
    'tensor shape': ('se', 'SELayer', dict(channel=8, reduction=2), SE, {}, r'fc1.weight would be \(2, 8\), but SE has \(4, 8\)'),
    'channels': ('se', 'SELayer', dict(channel=8, reduction=4), SE, dict(in_channels=16), 'in_channels=16, but channel=8'),
    'no channels': ('sge', 'SpatialGroupEnhance', dict(groups=4), SGE, {}, 'give in_channels'),
    'groups': ('sge', 'SpatialGroupEnhance', dict(groups=4), SGE, dict(in_channels=6), 'groups=4, but groups must divide in_channels=6'),
    'simam channels': ('simam', 'simam_module', dict(channels=8), {}, dict(in_channels=6), 'in_channels=6, but channels=8'),
    'simam lambda': ('simam', 'simam_module', dict(e_lambda=0), {}, {}, 'SimAM: e_lambda=0, allowed finite numbers above 0'),
    'other channels out': ('coord', 'CoordAtt', dict(inp=8, oup=1), COORD, {}, 'oup=1, but the product needs inp=8'),
    'skip': ('coord', 'CoordAttn', dict(channels=8, has_skip=True), COORD, {}, 'has_skip=True adds the input'),
    'gate': ('coord', 'CoordAttn', dict(channels=8, gate_layer='hard_sigmoid'), COORD, {}, "gate_layer='hard_sigmoid', allowed sigmoid"),
    'activation': ('coord', 'CoordAttn', dict(channels=8, act_layer=nn.ReLU), COORD, {}, 'act_layer=.*ReLU.*, allowed hardswish'),
    'no norm': ('coord', 'CoordAttn', dict(channels=8, norm_layer=None), COORD, {}, 'norm_layer=None, allowed batchnorm2d'),
    'activation of simple': ('coord', 'SimpleCoordAttn', dict(channels=8, act_layer='relu'), {}, {}, "act_layer='relu', allowed silu"),
    'norm of local': ('coord', 'EfficientLocalAttn', dict(channels=8, norm_layer='batchnorm2d'), STRIP, {}, "norm_layer='batchnorm2d', allowed groupnorm1"),
    'skip of strip': ('coord', 'StripAttn', dict(channels=8, has_skip=True), STRIP, {}, 'has_skip=True adds the input'),
    'even kernel': ('coord', 'StripAttn', dict(channels=8), draw(**{'conv_h.weight': (8, 1, 2, 1), 'conv_w.weight': (8, 1, 1, 2)}), {}, 'kernel_size=2, allowed odd numbers'),
    'unknown of coordinate': ('coord', 'CoordAtt', dict(inp=8, oup=8, act=1), COORD, {}, 'unknown argument act'),
    'no channels of triplet': ('triplet', 'TripletAttention', {}, TRIPLET, {}, 'give in_channels'),
    'no gate of triplet': ('triplet', 'TripletAttention', {}, {}, dict(in_channels=8), 'tensor cw.conv.conv.weight or ChannelGateH.spatial.conv.weight is missing'),
    'gate too many': ('triplet', 'TripletAttention', dict(no_spatial=True), TRIPLET, dict(in_channels=8), 'unknown hw.conv.weight'),
    'ema groups': ('ema', 'EMA', dict(channels=8), {}, {}, 'EMAttention: groups=32, but groups must divide in_channels=8'),
    'ema other file': ('ema', 'EMAHead', dict(channels=8), {}, {}, 'unknown class, allowed EMA'),
    'other function': ('ran', 'AttentionModule_stage1', dict(in_channels=8), {}, {}, 'it adds the trunk and the mask branch once more'),
    'wrong case': ('nl', 'NonLocal2D', dict(in_channels=8, mode='gaussian'), {}, {}, "mode='gaussian', allowed embedded_gaussian, dot_product"),
    '3-d': ('nl', 'NONLocalBlock3D', {}, {}, {}, 'only the 2-d class is followed'),
    'caffe2': ('nl', 'spacetime_nonlocal', {}, {}, {}, 'it pools before its convolutions'),
    'no table': ('mhsa', 'BottleneckAttn', dict(dim=8), draw(**{'qkv.weight': (24, 8, 1, 1)}), {}, 'tensor pos_embed.height_rel is missing'),
    'table of another size': ('mhsa', 'BottleneckAttn', dict(dim=8, feat_size=(3, 4)), MHSA, {}, r'position.height would be \(3, 2\), but MHSA has \(5, 2\)'),
    'width of a head': ('mhsa', 'BottleneckAttn', dict(dim=8, dim_head=4), MHSA, {}, r'qkv.weight would be \(24, 8, 1, 1\), but MHSA has \(40, 8, 1, 1\)'),
    'head': ('ccnet', 'RCCAModule', {}, {}, {}, 'class CrissCrossAttention'),
    'file': ('nl', 'NONLocalBlock2D', dict(in_channels=8), {}, dict(path='lib/other.py'), "path='lib/other.py' names no mode"),
    'half width': ('nl', 'NONLocalBlock2D', dict(in_channels=8, inter_channels=3), {}, {}, 'inter_channels=3, allowed divisors of in_channels=8'),
    'sizes': ('ann', 'APNB', dict(in_channels=8, out_channels=8, sizes=[2]), {}, {}, "sizes=.2,., allowed 1"),
    'version': ('cmpese', 'CMPESEBlock1x1', dict(channels=8, version='2x1'), {}, {}, "version='2x1' contradicts the class"),
    'gate 3-d': ('gate', 'GridAttentionBlock3D_TORR', {}, {}, {}, 'only the 2-d class is followed'),
    'two gates': ('gate', 'MultiAttentionBlock', {}, {}, {}, 'two gates, concatenated'),
    'gate mode': ('gate', 'GridAttentionBlock2D', GATE | dict(mode='dot'), {}, {}, "mode='dot', allowed concatenation, concatenation_debug"),
    'gate default mode': ('gate', 'GridAttentionBlock2D_TORR', GATE, {}, {}, "mode='concatenation', allowed concatenation_sigmoid"),
    'gate mean': ('gate', 'GridAttentionBlock2D_TORR', GATE | dict(mode='concatenation_mean'), {}, {}, 'divides by a sum of logits of either sign'),
    'gate without phi': ('gate', 'GridAttentionBlock2D_TORR', GATE | dict(mode='concatenation_sigmoid', use_phi=False), {}, {}, 'use_phi=False, allowed True'),
    'gate activation': ('gate', 'GridAttentionBlock2D_TORR', GATE | dict(mode='concatenation_sigmoid', nonlinearity1='elu'), {}, {}, "nonlinearity1='elu', allowed relu, None"),
    'gate size': ('gate', 'GridAttentionBlock2D', GATE | dict(sub_sample_factor=(2, 2, 2)), {}, {}, r'sub_sample_factor=\(2, 2, 2\), allowed one number or a pair'),
    'gate width': ('gate', 'GridAttentionBlock2D', GATE | dict(inter_channels=3), draw(**{'theta.weight': (4, 8, 2, 2)}), {}, 'inter_channels=3, but theta.weight has 4'),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_refused(case):
    system, cls, ctor, state, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        from_author(system, cls, ctor, state, **options)


def test_more_maps_than_ours_are_refused():
    state = draw(
        **{
            'Multi_Map.0.weight': (5, 1, 1, 1),
            'net_SE.1.weight': (4, 32),
            'net_SE.2.weight': (16, 4),
        }
    )
    ctor = dict(channels=16, net_se_ratio=4)
    with pytest.raises(ValueError, match='5 maps, but ours has channels // net_se_ratio = 4'):
        from_author('cmpese', 'CMPESEBlock1x1', ctor, state | norm('Multi_Map.1', 5))
