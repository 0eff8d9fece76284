"""Authors' large kernel attention: LSKNet's LSK, LSKA of VAN in three repositories."""

from torch import nn

from mmattn import blocks

from ..author_module import AuthorModule

_CHANNELS = 'dim', 'd_model', 'embed_dims'  # the argument, by class and repository
_PROJECTED = 'Attention', 'SpatialAttention'  # classes with projections around the other
_LSKA_KEYS = {  # mmdet, mmseg -> models/van.py
    'DW_conv_h': 'conv0h',
    'DW_conv_v': 'conv0v',
    'DW_D_conv_h': 'conv_spatial_h',
    'DW_D_conv_v': 'conv_spatial_v',
}


def lsk(author: AuthorModule) -> nn.Module:
    channels, project = _channels(author), _unwrap(author)
    author.keep('conv0', 'conv_spatial', 'conv1', 'conv2', 'conv_squeeze', 'conv')
    return blocks.LSK(channels, project=project)


def lska(author: AuthorModule) -> nn.Module:
    channels, project = _channels(author), _unwrap(author)
    author.ignore_arguments('init_cfg')
    activation = author.argument('act_cfg', dict(type='GELU'))
    if project and dict(activation) != dict(type='GELU'):
        author.fail(f"act_cfg={activation}, allowed dict(type='GELU')")
    is_van = 'DW_conv_h.weight' not in author.tensors
    names = {name: name for name in _LSKA_KEYS.values()} if is_van else _LSKA_KEYS
    first, _, second, _ = (author.tensor(f'{name}.weight').shape[-1] for name in names)
    author.rename(names)
    author.keep('conv1')
    kernel_size = first + (first + 1) // 2 * (second - 1)  # dilation d, first kernel 2 d - 1
    stated = author.argument('k_size', kernel_size)
    if stated != kernel_size:
        author.fail(f'k_size={stated}, but the weights are of k_size={kernel_size}')
    return blocks.LSKA(channels, kernel_size=kernel_size, project=project)


def _channels(author: AuthorModule) -> int:
    """The one of the names that is given; the first, if none is."""
    given = [name for name in _CHANNELS if name in author.ctor]
    return author.channels(given[0] if given else _CHANNELS[author.cls in _PROJECTED])


def _unwrap(author: AuthorModule) -> bool:
    """Whether the class has projections; then its inner module loses its prefix."""
    if author.cls not in _PROJECTED:
        return False
    author.keep('proj_1', 'proj_2')
    start = 'spatial_gating_unit.'
    author.tensors = {key.removeprefix(start): value for key, value in author.tensors.items()}
    return True
