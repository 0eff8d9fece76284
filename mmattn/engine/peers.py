"""What the blocks are measured against: MMCV's and MMSegmentation's modules, else the operations of
the authors' code restated on the weights of our block.

Each function takes our block and returns a callable that computes the same from the same inputs.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.blocks import AttentionBlock

Peer = Callable[..., Tensor]


class PeerCannot(RuntimeError):
    """A peer has no backward pass, or asks for more memory than there is."""


def se(b: AttentionBlock) -> Peer:
    def run(x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1).flatten(1)
        y = b.fc2(b.fc1(y).relu()).sigmoid()
        return x * y[:, :, None, None].expand_as(x)

    return run


def scse(b: AttentionBlock) -> Peer:
    def run(x: Tensor) -> Tensor:
        z = x.flatten(2).mean(2)
        z = b.channel.fc2(b.channel.fc1(z).relu()).sigmoid()
        by_channel = x * z[:, :, None, None]
        return torch.max(by_channel, x * b.spatial.conv(x).sigmoid())

    return run


def cmpese(b: AttentionBlock) -> Peer:
    def run(u: Tensor, x: Tensor) -> Tensor:
        pooled = [F.adaptive_avg_pool2d(t, 1).flatten(1)[:, None] for t in (u, x)]
        f = b.maps.bn(b.maps.conv(torch.stack(pooled, -1))).mean(1).flatten(1)
        s = b.fc2(b.fc1(f).relu()).sigmoid()
        return u * s[:, :, None, None] + x

    return run


def sk(b: AttentionBlock) -> Peer:
    def run(x: Tensor) -> Tensor:
        u = torch.stack([conv(x) for conv in b.convs], 1)  # (N, M, C, H, W)
        z = u.sum(1).mean((2, 3), keepdim=True)
        a = b.fc2(b.fc1(z)).unflatten(1, (b.branches, -1)).softmax(1)
        return (u * a).sum(1)

    return run


def cbam(b: AttentionBlock) -> Peer:
    def run(x: Tensor) -> Tensor:
        size = x.shape[2:]
        pooled = F.avg_pool2d(x, size), F.max_pool2d(x, size)
        z = sum(b.channel.fc2(b.channel.fc1(p.flatten(1)).relu()) for p in pooled)
        x = x * z.sigmoid()[:, :, None, None].expand_as(x)
        m = torch.cat([torch.max(x, 1)[0][:, None], torch.mean(x, 1)[:, None]], 1)
        return x * b.spatial(m).sigmoid()

    return run


def bam(b: AttentionBlock) -> Peer:
    def run(x: Tensor) -> Tensor:
        z = F.avg_pool2d(x, x.shape[2:]).flatten(1)
        z = b.channel.fc2(b.channel.bn(b.channel.fc1(z)).relu())[:, :, None, None].expand_as(x)
        s = b.spatial.final(b.spatial.convs(b.spatial.reduce(x))).expand_as(x)
        return (1 + (z + s).sigmoid()) * x

    return run


def sge(b: AttentionBlock) -> Peer:
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


def shuffle_attention(b: AttentionBlock) -> Peer:
    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x0, x1 = x.reshape(n * b.groups, -1, h, w).chunk(2, 1)
        x0 = x0 * (b.cweight * F.adaptive_avg_pool2d(x0, 1) + b.cbias).sigmoid()
        x1 = x1 * (b.sweight * b.gn(x1) + b.sbias).sigmoid()
        y = torch.cat([x0, x1], 1).reshape(n, 2, -1, h, w)
        return y.permute(0, 2, 1, 3, 4).reshape(n, c, h, w)

    return run


def simplified_non_local(b: AttentionBlock) -> Peer:
    def run(x: Tensor) -> Tensor:
        a = b.conv_mask(x).flatten(2).softmax(-1)
        context = (x.flatten(2) @ a.mT)[..., None]
        return x + b.conv_v(context)

    return run


def context_block(b: AttentionBlock) -> Peer:
    from mmcv.cnn import ContextBlock

    return _loaded(b, ContextBlock(b.in_channels, b.ratio, b.pooling_type, b.fusion_types))


def non_local(b: AttentionBlock) -> Peer:
    from mmcv.cnn import NonLocal2d

    names = 'in_channels', 'sub_sample', 'reduction', 'use_scale', 'norm_cfg', 'mode'
    module = _loaded(b, NonLocal2d(**{name: b.arguments[name] for name in names}))
    if b.mode != 'concatenation':
        return module

    def run(x: Tensor) -> Tensor:
        if x.requires_grad:
            raise PeerCannot('mmcv divides in place what its backward pass needs')
        # both sides repeated over all pairs, then concatenated
        needed = 4 * len(x) * b.inter_channels * x.shape[2:].numel() ** 2 * x.element_size()
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        if needed > memory / 2:
            raise PeerCannot(f'mmcv would need {needed / 1e9:.0f} GB')
        return module(x)

    return run


def criss_cross(b: AttentionBlock) -> Peer:
    from mmcv.ops import CrissCrossAttention

    module = _loaded(b, CrissCrossAttention(b.in_channels))

    def run(x: Tensor) -> Tensor:
        for _ in range(b.recurrence):
            x = module(x)
        return x

    return run


def apnb(b: AttentionBlock) -> Peer:
    from mmseg.models.decode_heads.ann_head import APNB

    return _loaded(b, APNB(b.in_channels, *_asymmetric(b)))


def afnb(b: AttentionBlock) -> Peer:
    from mmseg.models.decode_heads.ann_head import AFNB

    return _loaded(b, AFNB(b.in_channels, b.high_in_channels, *_asymmetric(b)))


def pam(b: AttentionBlock) -> Peer:
    from mmseg.models.decode_heads.da_head import PAM

    return _loaded(b, PAM(b.in_channels, b.query_project.out_channels))


def cam(b: AttentionBlock) -> Peer:
    from mmseg.models.decode_heads.da_head import CAM

    return _loaded(b, CAM())


def dual_attention(b: AttentionBlock) -> Peer:
    position, channel = pam(b.pam), cam(b.cam)
    return lambda x: position(x) + channel(x) - x


def residual_attention(b: AttentionBlock) -> Peer:
    def unit(u: nn.Module, x: Tensor) -> Tensor:
        y = u.conv1(F.relu(u.bn1(x)))
        y = u.conv2(F.relu(u.bn2(y)))
        return u.conv3(F.relu(u.bn3(y))) + x

    def units(sequence: nn.Module, x: Tensor) -> Tensor:
        for u in sequence:
            x = unit(u, x)
        return x

    def up(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[2:], mode='bilinear', align_corners=True)

    def run(x: Tensor) -> Tensor:
        x = units(b.pre, x)
        levels = [x]
        for down in b.down:
            levels.append(units(down, F.max_pool2d(levels[-1], 3, 2, 1)))
        m = units(b.bottom, F.max_pool2d(levels[-1], 3, 2, 1))
        for k in range(b.depth - 1, 0, -1):
            m = units(b.up[k - 1], up(m, levels[k]) + unit(b.skip[k - 1], levels[k]))
        mask = b.gate(up(m, x)).sigmoid()
        return units(b.post, (1 + mask) * units(b.trunk, x))

    return run


def spatial_transformer(b: AttentionBlock) -> Peer:
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


def _loaded(block: AttentionBlock, module: nn.Module) -> nn.Module:
    """A stock module with the weights, dtype, device and mode of ours."""
    value = next(block.parameters())
    module.to(value.device, value.dtype).load_state_dict(block.state_dict())
    return module.train(block.training)


# class of ours: what it is called in the table, and the peer
PEERS: dict[str, tuple[str, Callable[[AttentionBlock], Peer]]] = {
    'AFNB': ('mmseg', afnb),
    'APNB': ('mmseg', apnb),
    'BAM': ('authors', bam),
    'CAM': ('mmseg', cam),
    'CBAM': ('authors', cbam),
    'CMPESE': ('authors', cmpese),
    'ContextBlock': ('mmcv', context_block),
    'CrissCrossAttention': ('mmcv', criss_cross),
    'DualAttention': ('mmseg', dual_attention),
    'NonLocal2d': ('mmcv', non_local),
    'PAM': ('mmseg', pam),
    'ResidualAttention': ('port', residual_attention),
    'SCSE': ('authors', scse),
    'SE': ('authors', se),
    'SGE': ('authors', sge),
    'ShuffleAttention': ('authors', shuffle_attention),
    'SimplifiedNonLocal': ('formula', simplified_non_local),
    'SKConv2d': ('formula', sk),
    'SpatialTransformer': ('tutorial', spatial_transformer),
}
