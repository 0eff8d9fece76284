"""LSKA under the names of three repositories, and what of it and of LSK is refused."""

import pytest
from torch.nn import functional as F

from mmattn.zoo import from_author
from tests.zoo.test_authors import draw, image, same

VAN = 'conv0h', 'conv0v', 'conv_spatial_h', 'conv_spatial_v'
OPENMMLAB = 'DW_conv_h', 'DW_conv_v', 'DW_D_conv_h', 'DW_D_conv_v'


def lska_state(first, second, start='', names=VAN):
    """8 channels; the mmdet and mmseg files have other names than the classification."""
    kernels = (1, first), (first, 1), (1, second), (second, 1)
    shapes = {'conv1.weight': (8, 8, 1, 1), 'conv1.bias': (8,)}
    for name, kernel in zip(names, kernels, strict=True):
        shapes |= {f'{name}.weight': (8, 1, *kernel), f'{name}.bias': (8,)}
    projections = {}
    if start:
        for name in 'proj_1', 'proj_2':
            projections |= {f'{name}.weight': (8, 8, 1, 1), f'{name}.bias': (8,)}
    return draw(**{start + key: shape for key, shape in shapes.items()} | projections)


def lska(x, state, d, names, start=''):
    """The authors' formula in their own tensors."""
    y = x
    for name, dilation in zip(names, ((1, 1), (1, 1), (1, d), (d, 1)), strict=True):
        weight = state[f'{start}{name}.weight']
        padding = [n * (k // 2) for n, k in zip(dilation, weight.shape[2:], strict=True)]
        y = F.conv2d(y, weight, state[f'{start}{name}.bias'], 1, padding, dilation, 8)
    return x * F.conv2d(y, state[f'{start}conv1.weight'], state[f'{start}conv1.bias'])


@pytest.mark.parametrize(
    'cls, argument, names',
    [
        ('LSKA', 'dim', VAN),
        ('Attention', 'd_model', VAN),
        ('LSKA', 'embed_dims', OPENMMLAB),
        ('SpatialAttention', 'embed_dims', OPENMMLAB),
        ('AttentionModule', 'embed_dims', OPENMMLAB),
        ('AttentionModule', 'dim', OPENMMLAB),
        ('SpatialAttention', 'd_model', OPENMMLAB),
    ],
)
@pytest.mark.parametrize('k, first, second, d', [(7, 3, 3, 2), (29, 5, 9, 3), (53, 5, 17, 3)])
def test_lska_of_three_repositories(k, first, second, d, cls, argument, names):
    start = 'spatial_gating_unit.' if cls.endswith('Attention') else ''
    state, x = lska_state(first, second, start, names), image(2, 8, 5, 7)
    block = from_author('lska', cls, {argument: 8, 'k_size': k}, state)
    assert block.kernel_size == k
    if start:
        z = F.gelu(F.conv2d(x, state['proj_1.weight'], state['proj_1.bias']))
        z = F.conv2d(lska(z, state, d, names, start), state['proj_2.weight'], state['proj_2.bias'])
        same(block(x), x + z)
    else:
        same(block(x), lska(x, state, d, names))


REFUSED = {
    'kernel': ('lska', 'LSKA', dict(dim=8, k_size=11), lska_state(5, 7), {}, 'k_size=11, but the weights are of k_size=23'),
    'kernel without rule': ('lska', 'LSKA', dict(dim=8, k_size=9), lska_state(3, 4), {}, 'LSKA: kernel_size=9, allowed 7, 11'),
    'kernel missing': ('lska', 'LSKA', dict(dim=8), {}, {}, 'tensor conv0h.weight is missing'),
    'activation of lska': ('lska', 'SpatialAttention', dict(embed_dims=8, act_cfg=dict(type='ReLU')), lska_state(5, 7, 'spatial_gating_unit.'), {}, "act_cfg=.*, allowed dict.type='GELU'"),
    'not separable': ('lska', 'LKA', dict(dim=8), {}, {}, 'its kernel is not separated'),
    'block of VAN': ('lska', 'Block', dict(dim=8), {}, {}, 'convert its attn'),
    'block of LSKNet': ('lsk', 'Block', dict(dim=8), {}, {}, 'convert its attn'),
    'one channel': ('lsk', 'LSKblock', dict(dim=1), {}, {}, 'LSK: in_channels=1, allowed 2 and more'),
    'name of channels': ('lsk', 'Attention', dict(channels=8), {}, {}, 'argument d_model is missing'),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_refused(case):
    system, cls, ctor, state, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        from_author(system, cls, ctor, state, **options)
