"""Baselines of the benchmark: modules of MMCV, MMSegmentation and timm, or authors' operations.

Each function takes our block and returns a callable that computes the same from the same inputs;
authors' operations are restated on the weights of our block, some in `authors_operations.py`.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.blocks import AttentionBlock

from .authors_operations import (
    Forward,
    coordinate_attention,
    lsk,
    lska,
    mhsa,
    mhsa_timm,
    residual_attention,
    triplet_attention,
)
from .timing import BaselineUnsupported


@dataclass(frozen=True)
class Baseline:
    """Another implementation of a block.

    Attributes:
        label: its origin, as shown in the table.
        make: our block -> a callable with the same weights, dtype, device and mode.
        pair_values: our block, first input -> number of values that maps over pairs of positions
            hold at once in a forward pass; a backward pass is taken to need twice as many.
        package: package that must be installed; without it the baseline is left out.
    """

    label: str
    make: Callable[[nn.Module], Forward]
    pair_values: Callable[[nn.Module, Tensor], int] | None = None
    package: str = 'torch'

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


def se(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1).flatten(1)
        y = b.fc2(b.fc1(y).relu()).sigmoid()
        return x * y[:, :, None, None].expand_as(x)

    return run


def eca(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1)
        y = b.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * y.sigmoid().expand_as(x)

    return run


def eca_timm(b: AttentionBlock) -> Forward:
    from timm.layers import CecaModule, EcaModule

    cls = CecaModule if b.circular else EcaModule
    return _with_our_weights(b, cls(kernel_size=b.kernel_size))


def coordinate_attention_timm(b: AttentionBlock) -> Forward:
    from timm.layers.coord_attn import CoordAttn

    conv = b.reduce.conv
    module = CoordAttn(b.in_channels, rd_channels=conv.out_channels, bias=conv.bias is not None)
    names = dict(conv1='reduce.conv', bn1='reduce.bn', conv_h='rows', conv_w='columns')
    return _with_renamed_weights(b, module, names)


def scse(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        z = x.flatten(2).mean(2)
        z = b.channel.fc2(b.channel.fc1(z).relu()).sigmoid()
        by_channel = x * z[:, :, None, None]
        return torch.max(by_channel, x * b.spatial.conv(x).sigmoid())

    return run


def cmpese(b: AttentionBlock) -> Forward:
    def run(u: Tensor, x: Tensor) -> Tensor:
        pooled = [F.adaptive_avg_pool2d(t, 1).flatten(1)[:, None] for t in (u, x)]
        f = b.maps.bn(b.maps.conv(torch.stack(pooled, -1))).mean(1).flatten(1)
        s = b.fc2(b.fc1(f).relu()).sigmoid()
        return u * s[:, :, None, None] + x

    return run


def sk(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        u = torch.stack([conv(x) for conv in b.convs], 1)  # (N, M, C, H, W)
        z = u.sum(1).mean((2, 3), keepdim=True)
        a = b.fc2(b.fc1(z)).unflatten(1, (b.branches, -1)).softmax(1)
        return (u * a).sum(1)

    return run


def cbam(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        size = x.shape[2:]
        pooled = F.avg_pool2d(x, size), F.max_pool2d(x, size)
        z = sum(b.channel.fc2(b.channel.fc1(p.flatten(1)).relu()) for p in pooled)
        x = x * z.sigmoid()[:, :, None, None].expand_as(x)
        m = torch.cat([torch.max(x, 1)[0][:, None], torch.mean(x, 1)[:, None]], 1)
        return x * b.spatial(m).sigmoid()

    return run


def bam(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        z = F.avg_pool2d(x, x.shape[2:]).flatten(1)
        z = b.channel.fc2(b.channel.bn(b.channel.fc1(z)).relu())[:, :, None, None].expand_as(x)
        s = b.spatial.final(b.spatial.convs(b.spatial.reduce(x))).expand_as(x)
        return (1 + (z + s).sigmoid()) * x

    return run


def sge(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        groups = b.groups
        x = x.reshape(n * groups, -1, h, w)
        t = (x * F.adaptive_avg_pool2d(x, 1)).sum(1, keepdim=True).reshape(n * groups, -1)
        t = t - t.mean(1, keepdim=True)
        t = (t / (t.std(1, keepdim=True) + 1e-5)).reshape(n, groups, h, w)
        t = (t * b.weight + b.bias).reshape(n * groups, 1, h, w)
        return (x * t.sigmoid()).reshape(n, c, h, w)

    return run


def simam(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        d = (x - x.mean(dim=[2, 3], keepdim=True)).pow(2)
        n = x.shape[2] * x.shape[3] - 1
        y = d / (4 * (d.sum(dim=[2, 3], keepdim=True) / n + b.e_lambda)) + 0.5
        return x * y.sigmoid()

    return run


def shuffle_attention(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x0, x1 = x.reshape(n * b.groups, -1, h, w).chunk(2, 1)
        x0 = x0 * (b.cweight * F.adaptive_avg_pool2d(x0, 1) + b.cbias).sigmoid()
        x1 = x1 * (b.sweight * b.gn(x1) + b.sbias).sigmoid()
        y = torch.cat([x0, x1], 1).reshape(n, 2, -1, h, w)
        return y.permute(0, 2, 1, 3, 4).reshape(n, c, h, w)

    return run


def ema(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n * b.groups, -1, h, w)
        rows = F.adaptive_avg_pool2d(x, (None, 1))
        columns = F.adaptive_avg_pool2d(x, (1, None)).permute(0, 1, 3, 2)
        rows, columns = torch.split(b.conv1x1(torch.cat([rows, columns], 2)), [h, w], 2)
        normed = b.gn(x * rows.sigmoid() * columns.permute(0, 1, 3, 2).sigmoid())
        values = b.conv3x3(x)
        p, q = (
            F.adaptive_avg_pool2d(t, 1).reshape(len(x), -1, 1).permute(0, 2, 1).softmax(-1)
            for t in (normed, values)
        )
        z = torch.matmul(p, values.flatten(2)) + torch.matmul(q, normed.flatten(2))
        return (x * z.reshape(len(x), 1, h, w).sigmoid()).reshape(n, c, h, w)

    return run


def se_timm(b: AttentionBlock) -> Forward:
    from timm.layers import SEModule

    module = SEModule(b.in_channels, rd_channels=b.fc1.out_features, bias=b.bias)
    return _with_renamed_weights(b, module, dict(fc1='fc1', fc2='fc2'))


def attention_gate(b: AttentionBlock) -> Forward:
    bias = torch.zeros(b.in_channels, device=b.psi.weight.device, dtype=b.psi.weight.dtype)
    bias.requires_grad_()  # theirs has one before the norm

    def run(x: Tensor, gating: Tensor) -> Tensor:
        theta = b.theta(x)
        phi = F.interpolate(b.phi(gating), theta.shape[2:], mode='bilinear')
        a = b.psi(F.relu(theta + phi, inplace=True)).sigmoid()
        a = F.interpolate(a, x.shape[2:], mode='bilinear')
        y = F.conv2d(a.expand_as(x) * x, b.project.conv.weight, bias)
        return b.project.bn(y)

    return run


def simplified_non_local(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        a = b.conv_mask(x).flatten(2).softmax(-1)
        context = (x.flatten(2) @ a.mT)[..., None]
        return x + b.conv_v(context)

    return run


def context_block(b: AttentionBlock) -> Forward:
    from mmcv.cnn import ContextBlock

    return _with_our_weights(
        b, ContextBlock(b.in_channels, b.ratio, b.pooling_type, b.fusion_types)
    )


def context_block_timm(b: AttentionBlock) -> Forward:
    from timm.layers import GlobalContext

    width = b.channel_add_conv[0].out_channels
    module = GlobalContext(b.in_channels, fuse_add=True, fuse_scale=False, rd_channels=width)
    module.mlp_add.norm.eps = b.channel_add_conv[1].eps  # timm's: 1e-6
    layers = dict(fc1=0, norm=1, fc2=3)
    names = {f'mlp_add.{name}': f'channel_add_conv.{i}' for name, i in layers.items()}
    return _with_renamed_weights(b, module, dict(conv_attn='conv_mask') | names)


def non_local(b: AttentionBlock) -> Forward:
    from mmcv.cnn import NonLocal2d

    names = 'in_channels', 'sub_sample', 'reduction', 'use_scale', 'norm_cfg', 'mode'
    module = _with_our_weights(b, NonLocal2d(**{name: b.arguments[name] for name in names}))
    if b.mode != 'concatenation':
        return module

    def run(x: Tensor) -> Tensor:
        if x.requires_grad:
            raise BaselineUnsupported('mmcv divides in place what its backward pass needs')
        return module(x)

    return run


def non_local_timm(b: AttentionBlock) -> Forward:
    from timm.layers import NonLocalAttn

    module = NonLocalAttn(b.in_channels, rd_channels=b.inter_channels)
    module.scale, module.norm = b.scale, nn.Identity()  # timm's: in_channels**-0.5, batch norm
    names = dict(t='theta.conv', p='phi.conv', g='g.conv', z='conv_out.conv')
    return _with_renamed_weights(b, module, names)


def dot_product_core(b: nn.Module) -> Forward:
    from mmcv.cnn import NonLocal2d

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = NonLocal2d.dot_product(None, q.mT, k)  # the method uses nothing of its module
        return (weights @ v.mT).mT

    return run


def criss_cross(b: AttentionBlock) -> Forward:
    from mmcv.ops import CrissCrossAttention

    return nn.Sequential(*b.recurrence * [_with_our_weights(b, CrissCrossAttention(b.in_channels))])


def apnb(b: AttentionBlock) -> Forward:
    from mmseg.models.decode_heads.ann_head import APNB

    return _with_our_weights(b, APNB(b.in_channels, *_asymmetric(b)))


def afnb(b: AttentionBlock) -> Forward:
    from mmseg.models.decode_heads.ann_head import AFNB

    return _with_our_weights(b, AFNB(b.in_channels, b.high_in_channels, *_asymmetric(b)))


def ann_head(b: nn.Module) -> Forward:
    from mmseg.models.decode_heads import ANNHead

    stock = type(b)(ANNHead, b.arguments)
    stock.head.dropout = nn.Identity()  # mmseg calls it, but leaves it None at a ratio of 0
    return _with_our_weights(b, stock)


def without_attention(b: nn.Module) -> Forward:
    """The network without its blocks; they start as the identity, so it computes the same."""
    stock = b.without_attention()
    weights = b.state_dict()
    stock.load_state_dict({key: weights[key] for key in stock.state_dict()})
    return stock.to(b.image.device, b.image.dtype).train(b.training)


def dot_product_mode(b: AttentionBlock) -> Forward:
    """Our block with another pairwise function, to compare costs: it computes something else."""
    return _as_ours(b, type(b)(b.in_channels, mode='dot_product'))


def pam(b: AttentionBlock) -> Forward:
    from mmseg.models.decode_heads.da_head import PAM

    return _with_our_weights(b, PAM(b.in_channels, b.query_project.out_channels))


def cam(b: AttentionBlock) -> Forward:
    from mmseg.models.decode_heads.da_head import CAM

    return _with_our_weights(b, CAM())


def dual_attention(b: AttentionBlock) -> Forward:
    both = nn.ModuleList([pam(b.pam), cam(b.cam)])
    both.forward = lambda x: both[0](x) + both[1](x) - x
    return both


def spatial_transformer(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        theta = b.localization(x).reshape(-1, 2, 3)
        grid = F.affine_grid(theta, x.shape, align_corners=b.align_corners)
        sample = dict(padding_mode=b.padding_mode, align_corners=b.align_corners)
        return F.grid_sample(x, grid, **sample)

    return run


def _asymmetric(b: AttentionBlock) -> tuple:
    stage = b.stages[0]
    a = b.arguments
    return (
        stage.value_project.out_channels,
        stage.out_project.out_channels,
        a['query_scales'],
        a['key_pool_scales'],
        a['conv_cfg'],
        a['norm_cfg'],
        a['act_cfg'],
    )


def _with_our_weights(block: AttentionBlock, module: nn.Module) -> nn.Module:
    """A module with the weights, dtype, device and mode of our block."""
    module = _as_ours(block, module)
    module.load_state_dict(block.state_dict())
    return module


def _with_renamed_weights(
    block: AttentionBlock, module: nn.Module, names: dict[str, str]
) -> nn.Module:
    """As `_with_our_weights`, with `names` mapping layers of the module to layers of our block."""
    ours, state = block.state_dict(), module.state_dict()
    for key, value in state.items():
        layer, _, kind = key.rpartition('.')
        state[key] = ours[f'{names[layer]}.{kind}'].reshape(value.shape)
    module = _as_ours(block, module)
    module.load_state_dict(state)
    return module


def _as_ours(block: AttentionBlock, module: nn.Module) -> nn.Module:
    """A module in the dtype, device and mode of our block, which need not have parameters."""
    value = next(block.parameters(), None)
    return (module if value is None else module.to(value.device, value.dtype)).train(block.training)


def _pairs(maps: float) -> Callable[[nn.Module, Tensor], int]:
    return lambda b, x: maps * len(x) * x.shape[2:].numel() ** 2


def _mmcv_pairs(b: AttentionBlock, x: Tensor) -> int:
    """Logits and weights; with 'concatenation' both sides repeated over all pairs, and joined."""
    return _pairs(4 * b.inter_channels if b.mode == 'concatenation' else 2)(b, x)


# name of a case, or its block -> its baselines; targets are for the first
BASELINES: dict[str, list[Baseline]] = {
    'AFNB': [Baseline('mmseg', afnb)],
    'ANNHead': [Baseline('mmseg', ann_head)],
    'APNB': [Baseline('mmseg', apnb)],
    'AttentionGate': [Baseline('authors', attention_gate)],
    'BAM': [Baseline('authors', bam)],
    'CAM': [Baseline('mmseg', cam)],
    'CBAM': [Baseline('authors', cbam)],
    'CMPESE': [Baseline('authors', cmpese)],
    'ContextBlock': [
        Baseline('mmcv', context_block),
        Baseline('timm', context_block_timm, package='timm'),
    ],
    'CoordinateAttention': [
        Baseline('authors', coordinate_attention),
        Baseline('timm', coordinate_attention_timm, package='timm'),
    ],
    'CrissCrossAttention': [Baseline('mmcv', criss_cross)],
    'DualAttention': [Baseline('mmseg', dual_attention, _pairs(2))],
    'ECA': [Baseline('authors', eca), Baseline('timm', eca_timm, package='timm')],
    'EMAttention': [Baseline('authors', ema)],
    'LSK': [Baseline('authors', lsk)],
    'LSKA': [Baseline('authors', lska)],
    'Mask R-CNN R50 + GC': [Baseline('without', without_attention)],
    'MHSA': [
        Baseline('authors', mhsa, lambda b, x: 4 * b.heads * _pairs(1)(b, x)),
        Baseline('timm', mhsa_timm, lambda b, x: 4 * b.heads * _pairs(1)(b, x), package='timm'),
    ],
    'NonLocal2d': [Baseline('mmcv', non_local, _mmcv_pairs)],
    'NonLocal2d concatenation 128x256': [Baseline('dot_prod', dot_product_mode)],
    'NonLocal2d dot_product core': [Baseline('mmcv', dot_product_core, _pairs(1))],
    'NonLocal2d embedded_gaussian': [
        Baseline('mmcv', non_local, _mmcv_pairs),
        Baseline('timm', non_local_timm, _pairs(2), package='timm'),
    ],
    'PAM': [Baseline('mmseg', pam, _pairs(2))],
    'ResidualAttention': [Baseline('port', residual_attention)],
    'SCSE': [Baseline('authors', scse)],
    'SE': [Baseline('authors', se), Baseline('timm', se_timm, package='timm')],
    'SGE': [Baseline('authors', sge)],
    'ShuffleAttention': [Baseline('authors', shuffle_attention)],
    'SimAM': [Baseline('authors', simam)],
    'SimplifiedNonLocal': [Baseline('formula', simplified_non_local)],
    'SKConv2d': [Baseline('formula', sk)],
    'SpatialTransformer': [Baseline('tutorial', spatial_transformer)],
    'TripletAttention': [Baseline('authors', triplet_attention)],
}
