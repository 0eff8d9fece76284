"""Authors' attention gates of skip connections."""

from typing import Any

from torch import nn

from mmattn import blocks

from ..author_module import AuthorModule

_NORMALIZE = {
    'concatenation_sigmoid': 'sigmoid',
    'concatenation_softmax': 'softmax',
    'concatenation_mean_flow': 'mean_flow',
    'concatenation_range_normalise': 'range',
}


def grid_attention(author: AuthorModule) -> nn.Module:
    modes = dict(
        concatenation=dict(),
        concatenation_debug=dict(activation='softplus'),
        concatenation_residual=dict(normalize='softmax'),
    )
    mode = author.argument('mode', 'concatenation')
    if mode not in modes:
        author.fail(f'{mode=}, allowed {", ".join(modes)}')
    sub_sample = _size(author, (2, 2))
    return _gate(author, sub_sample=sub_sample, **modes[mode])


def grid_attention_torr(author: AuthorModule) -> nn.Module:
    mode = author.argument('mode', 'concatenation')
    if mode == 'concatenation_mean':
        author.fail(f'{mode=} divides by a sum of logits of either sign, which may be 0; ours not')
    if mode not in _NORMALIZE:
        author.fail(f'{mode=}, allowed {", ".join(_NORMALIZE)}')
    for name in 'use_theta', 'use_phi', 'use_psi':
        if not author.argument(name, True):
            author.fail(f'{name}=False, allowed True: ours has all three convolutions')
    activation = author.argument('nonlinearity1', 'relu') or None
    if activation not in ('relu', None):
        author.fail(f'nonlinearity1={activation!r}, allowed relu, None')
    sub_sample = _size(author, (1, 1))
    return _gate(
        author,
        sub_sample=sub_sample,
        gating_sub_sample=sub_sample,
        bias=False,
        activation=activation,
        normalize=_NORMALIZE[mode],
        project=bool(author.argument('use_W', True)),
        bn_layer=bool(author.argument('bn_layer', True)),
    )


def _size(author: AuthorModule, default: tuple[int, int]) -> tuple[int, int]:
    """`sub_sample_factor`, one number or a pair."""
    value = author.argument('sub_sample_factor', default)
    size = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(size) != 2:
        author.fail(f'sub_sample_factor={value!r}, allowed one number or a pair')
    return size


def _gate(
    author: AuthorModule, project: bool = True, bn_layer: bool = True, **options: Any
) -> nn.Module:
    channels = author.channels('in_channels')
    gating_channels = author.argument('gating_channels')
    width, inter_channels = len(author.tensor('theta.weight')), author.argument('inter_channels', 0)
    if inter_channels and inter_channels != width:
        author.fail(f'{inter_channels=}, but theta.weight has {width}')
    author.keep('theta', 'phi', 'psi')
    if project and bn_layer:
        author.rename({'W.0.weight': 'project.conv.weight', 'W.1': 'project.bn'})
        if 'project.bn.running_mean' not in author.converted:
            author.fail('tensor W.1.running_mean is missing')
        author.fold_bias('W.0.bias', 'project.bn')
    elif project:
        author.rename({'W': 'project.conv'})
    if project and not bn_layer:
        options['norm_cfg'] = None
    return blocks.AttentionGate(
        channels, gating_channels, channels=width, project=project, **options
    )
