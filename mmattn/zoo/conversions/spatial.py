"""Authors' spatial modules: residual attention, spatial transformer, EMA, SimAM."""

from torch import nn

from mmattn import blocks
from mmattn.blocks.residual_attention import ResidualUnit

from ..author_module import AuthorModule


def residual_attention(author: AuthorModule) -> nn.Module:
    channels = author.channels('in_channels')
    out_channels = author.argument('out_channels', channels)
    if out_channels != channels:
        author.fail(f'{out_channels=}, but it must equal in_channels={channels}')
    author.ignore_arguments('size1', 'size2', 'size3')  # taken from the feature maps
    unused = [key for key in author.tensors if key.endswith('conv4.weight')]
    author.drop(*unused)  # the author never uses them
    author.rename(
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


def residual_unit(author: AuthorModule) -> nn.Module:
    channels = author.channels('input_channels')
    out, stride = author.argument('output_channels', channels), author.argument('stride', 1)
    unit = ResidualUnit(channels, out, stride)
    if unit.conv4 is None:
        author.drop('conv4.weight')  # the author never uses it
    author.keep('bn1', 'conv1', 'bn2', 'conv2', 'bn3', 'conv3', 'conv4')
    return unit


def spatial_transformer(author: AuthorModule) -> nn.Module:
    if author.in_channels not in (None, 1):
        author.fail(f'in_channels={author.in_channels}, allowed 1: the class takes grey images')
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
    author.rename({'fc_loc.0': 'localization.7', 'fc_loc.2': 'localization.9'})
    author.keep('localization')
    return blocks.SpatialTransformer(
        1, localization=localization, padding_mode='zeros', align_corners=False
    )


def simam(author: AuthorModule) -> nn.Module:
    """The channels only check the input, so they may be missing."""
    channels = author.argument('channels', None)
    if channels is None:
        channels = author.in_channels
    elif author.in_channels not in (None, channels):
        author.fail(f'in_channels={author.in_channels}, but {channels=}')
    return blocks.SimAM(channels, e_lambda=author.argument('e_lambda', 1e-4))


def ema(author: AuthorModule) -> nn.Module:
    author.ignore_arguments('c2')  # never used
    author.keep('conv1x1', 'conv3x3', 'gn')
    return blocks.EMAttention(author.channels('channels'), groups=author.argument('factor', 32))
