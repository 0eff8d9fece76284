"""How authors' classes are converted: class name -> function, one file a family.

A conversion takes the arguments and tensors that it needs from an `AuthorModule` and returns our
module; `from_author` reports whatever it leaves. What the classes compute, and where ours differs,
is in the header of each block.
"""

from collections.abc import Callable

from torch import nn

from ..author_module import AuthorModule
from . import (
    asymmetric_non_local,
    channel_attention,
    gated_skip,
    large_kernel,
    non_local,
    openmmlab,
    spatial,
    strips,
)

_CMPESE = {
    f'{start}CMPESEBlock{version}': channel_attention.cmpese
    for start in ('', 'PreActBottleneck', 'PreActBasic')
    for version in ('DoubleFC', '1x1', '2x1', '3x3')
}
CLASSES: dict[str, dict[str, Callable[[AuthorModule], nn.Module]]] = {
    'se': {'SELayer': channel_attention.se, 'SEModule': channel_attention.timm_se},
    'eca': {
        'eca_layer': channel_attention.eca,
        'EcaModule': channel_attention.eca,
        'CecaModule': channel_attention.eca,
    },
    'scse': {
        'ChannelSELayer': channel_attention.scse('channel'),
        'SpatialSELayer': channel_attention.scse('spatial'),
        'ChannelSpatialSELayer': channel_attention.scse('max'),
        'cSE(x)+sSE(x)': channel_attention.scse('add'),
    },
    'coord': {
        'CoordAtt': strips.coordinate,
        'CoordAttn': strips.timm_coordinate,
        'SimpleCoordAttn': strips.timm_simple,
        'EfficientLocalAttn': strips.timm_local,
        'StripAttn': strips.timm_strip,
    },
    'cmpese': _CMPESE,
    'sk': {'SK unit': channel_attention.sk_unit},
    'lsk': {'LSKblock': large_kernel.lsk, 'Attention': large_kernel.lsk},
    'lska': {
        'LSKA': large_kernel.lska,
        'AttentionModule': large_kernel.lska,
        'Attention': large_kernel.lska,
        'SpatialAttention': large_kernel.lska,
    },
    'cbam': {'CBAM': channel_attention.cbam, 'ChannelGate': channel_attention.cbam_channel_gate},
    'triplet': {'TripletAttention': strips.triplet},
    'bam': {'BAM': channel_attention.bam},
    'sge': {'SpatialGroupEnhance': channel_attention.sge},
    'simam': {'simam_module': spatial.simam},
    'sanet': {'sa_layer': channel_attention.shuffle_attention},
    'ema': {'EMA': spatial.ema},
    'gc': {'ContextBlock': non_local.global_context},
    'snl': {'simplified non-local block': non_local.simplified_non_local},
    'nl': {
        'NONLocalBlock2D': non_local.alexhex7_non_local,
        'NonLocal2D': non_local.gcnet_non_local,
        'NonLocal2d': openmmlab.same_class('NonLocal2d'),
    },
    'mhsa': {'BottleneckAttn': non_local.bottleneck_attention},
    'ccnet': {'CrissCrossAttention': non_local.criss_cross},
    'ann': {
        'APNB': openmmlab.same_class_or('APNB', asymmetric_non_local.apnb),
        'AFNB': openmmlab.same_class_or('AFNB', asymmetric_non_local.afnb),
    },
    'danet': {
        'PAM_Module': non_local.pam,
        'CAM_Module': non_local.cam,
        'DANetHead': non_local.danet_head,
        'PAM': openmmlab.same_class('PAM'),
        'CAM': openmmlab.same_class('CAM'),
    },
    'ran': {
        'AttentionModule_pre': spatial.residual_attention,
        'ResidualBlock': spatial.residual_unit,
    },
    'gate': {
        'GridAttentionBlock2D': gated_skip.grid_attention,
        'GridAttentionBlock2D_TORR': gated_skip.grid_attention_torr,
    },
    'stn': {'Net.stn': spatial.spatial_transformer},
    'dcnv1': {
        'DeformConv2d': openmmlab.deformable_conv('DeformConv2d'),
        'DeformConv2dPack': openmmlab.deformable_conv('DeformConv2dPack'),
        'DCN': openmmlab.deformable_conv('DeformConv2dPack'),
    },
    'dcnv2': {
        'ModulatedDeformConv2d': openmmlab.deformable_conv('ModulatedDeformConv2d'),
        'ModulatedDeformConv2dPack': openmmlab.deformable_conv('ModulatedDeformConv2dPack'),
        'DCNv2': openmmlab.deformable_conv('ModulatedDeformConv2dPack'),
    },
}
# Author classes that are not converted: start of the class name -> reason.
REFUSED: dict[str, dict[str, str]] = {
    'sk': {
        'Bottleneck': 'a changed block, with a dense and a grouped 3x3 of one reach and a residual '
        'of its own; ours is the unit of the paper and of the Caffe network (class "SK unit")'
    },
    'lsk': {
        'Block': 'a block of the backbone, with batch norms and an MLP; convert its attn',
        'LSKNet': 'a backbone; convert the attn of its blocks',
    },
    'lska': {
        'Block': 'a block of the backbone, with batch norms and an MLP; convert its attn',
        'VANBlock': 'a block of the backbone, with batch norms and an MLP; convert its attn',
        'VAN': 'a backbone; convert the attn of its blocks',
        'LKA': 'its kernel is not separated, so it computes something else; ours is class LSKA',
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
        'so ours, cannot express; compose it from mmattn.ops.softmax_attention',
    },
    'ccnet': {
        'RCCAModule': 'a decode head with in-place activated norms; its attention is class '
        'CrissCrossAttention, a head for it is mmattn.CCHead'
    },
    'ran': {
        'AttentionModule_stage': 'it adds the trunk and the mask branch once more at each '
        'upsampling, against the network of the paper; class AttentionModule_pre has its data flow'
    },
    'gate': {
        'GridAttentionBlock3D': 'only the 2-d class is followed; ours works on (N, C, H, W)',
        '_GridAttentionBlockND': 'the base of two classes; name the 2-d one',
        'MultiAttentionBlock': 'two gates, concatenated; convert each, class GridAttentionBlock2D',
    },
    'stn': {
        'function': 'a function without weights: mmattn.ops.affine_sample',
        'spatial_transformer_network': 'it scales positions by size - 2 and clips corners before '
        'weighing them, so the identity transform moves the map; ours does not',
    },
}
