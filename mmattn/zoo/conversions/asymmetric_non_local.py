"""Authors' asymmetric non-local blocks, APNB and AFNB."""

import torch
from torch import nn

from mmattn import blocks

from ..author_module import AuthorModule

_BN = dict(type='BN')


def apnb(author: AuthorModule) -> nn.Module:
    channels, out_channels = author.channels('in_channels'), author.argument('out_channels')
    if out_channels != channels:
        author.fail(
            f"{out_channels=}, but the authors' last convolution needs in_channels={channels}"
        )
    sizes = tuple(author.argument('sizes', (1,)))
    if any(size != 1 for size in sizes):
        author.fail(f"{sizes=}, allowed 1: the authors' code fails on others")
    width, pools = _convert_stages(author, shared=True)
    author.rename(
        {
            'conv_bn_dropout.0.weight': 'bottleneck.conv.weight',
            'conv_bn_dropout.1.0': 'bottleneck.bn',
        }
    )
    _fold_bottleneck_bias(author)
    return blocks.APNB(channels, width, out_channels, (1,) * len(sizes), pools, None, _BN)


def afnb(author: AuthorModule) -> nn.Module:
    low, high = author.channels('low_in_channels'), author.argument('high_in_channels')
    sizes = author.argument('sizes', (1,))  # only their number has an effect in the authors' code
    width, pools = _convert_stages(author, shared=False)
    author.rename(
        {'conv_bn_dropout.0.weight': 'bottleneck.conv.weight', 'conv_bn_dropout.1': 'bottleneck.bn'}
    )
    _fold_bottleneck_bias(author)
    out = author.argument('out_channels')
    return blocks.AFNB(low, high, width, out, (1,) * len(sizes), pools, None, _BN)


def _convert_stages(author: AuthorModule, shared: bool) -> tuple[int, tuple[int, ...]]:
    """Convert `stages.*`; returns the width of keys and values, and the pool scales."""
    key_width, value_width = author.argument('key_channels'), author.argument('value_channels')
    width = max(key_width, value_width)
    norm = author.argument('norm_type', 'batchnorm')
    if norm not in ('batchnorm', None):
        author.fail(f'norm_type={norm!r}, allowed batchnorm')
    author.ignore_arguments('dropout')  # ours has none inside the block
    sizes = author.argument('sizes', (1,))
    for i in range(len(sizes)):
        name = f'stages.{i}'
        for theirs, ours in ('f_key', 'key_project'), ('f_query', 'query_project'):
            author.rename(
                {
                    f'{name}.{theirs}.0.weight': f'{name}.{ours}.conv.weight',
                    f'{name}.{theirs}.1.0': f'{name}.{ours}.bn',
                }
            )
            author.tensor(f'{name}.{theirs}.0.bias')
            if f'{name}.{ours}.bn.running_mean' not in author.converted:
                author.fail(f'tensor {name}.{theirs}.1.0.running_mean is missing')
            author.fold_bias(f'{name}.{theirs}.0.bias', f'{name}.{ours}.bn')
        author.rename(
            {f'{name}.f_value': f'{name}.value_project', f'{name}.W': f'{name}.out_project'}
        )
        _match_widths(author, name, key_width, value_width)
        if shared:
            for part in 'conv.weight', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var':
                pair = [author.converted[f'{name}.{k}_project.{part}'] for k in ('key', 'query')]
                if not torch.equal(*pair):
                    author.fail(
                        f'{name}: f_key and f_query are one module, but their {part} differ'
                    )
    return width, tuple(author.argument('psp_size', (1, 3, 6, 8)))


def _match_widths(author: AuthorModule, name: str, key_width: int, value_width: int) -> None:
    """Pad keys or values with zeros to one width, as ours needs; the result is the same."""
    if value_width < key_width:
        extra = key_width - value_width
        for key, axis in ('value_project.weight', 0), ('value_project.bias', 0):
            _pad(author, f'{name}.{key}', axis, extra)
        _pad(author, f'{name}.out_project.weight', 1, extra)
    elif value_width > key_width:
        extra = value_width - key_width
        # logits are divided by the root of the width, and relu(BN) grows with the norm's weights
        factor = (value_width / key_width) ** 0.25
        for part in 'key_project', 'query_project':
            for key, fill in ('weight', 0), ('bias', 0), ('running_mean', 0), ('running_var', 1):
                full = f'{name}.{part}.bn.{key}'
                if key in ('weight', 'bias'):
                    author.converted[full] = author.converted[full] * factor
                _pad(author, full, 0, extra, fill)
            _pad(author, f'{name}.{part}.conv.weight', 0, extra)


def _pad(author: AuthorModule, key: str, axis: int, extra: int, fill: float = 0) -> None:
    value = author.converted[key]
    shape = list(value.shape)
    shape[axis] = extra
    author.converted[key] = torch.cat([value, value.new_full(shape, fill)], axis)


def _fold_bottleneck_bias(author: AuthorModule) -> None:
    if 'bottleneck.bn.running_mean' not in author.converted:
        author.fail('tensor conv_bn_dropout.1 is missing')
    author.fold_bias('conv_bn_dropout.0.bias', 'bottleneck.bn')
