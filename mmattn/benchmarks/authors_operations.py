"""Authors' sequences of operations, restated on the weights of our block, for `baselines.py`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.blocks import AttentionBlock

Forward = Callable[..., Tensor]


def coordinate_attention(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        rows = F.adaptive_avg_pool2d(x, (None, 1))
        columns = F.adaptive_avg_pool2d(x, (1, None)).permute(0, 1, 3, 2)
        y = b.reduce(torch.cat([rows, columns], 2))
        y = y * (F.relu6(y + 3) / 6)
        rows, columns = torch.split(y, list(x.shape[2:]), 2)
        columns = columns.permute(0, 1, 3, 2)
        return x * b.columns(columns).sigmoid() * b.rows(rows).sigmoid()

    return run


def triplet_attention(b: AttentionBlock) -> Forward:
    def gate(x: Tensor, layers: nn.Module) -> Tensor:
        pooled = torch.cat([torch.max(x, 1)[0][:, None], torch.mean(x, 1)[:, None]], 1)
        return x * layers(pooled).sigmoid()

    def run(x: Tensor) -> Tensor:
        by_height = gate(x.permute(0, 2, 1, 3).contiguous(), b.cw).permute(0, 2, 1, 3).contiguous()
        by_width = gate(x.permute(0, 3, 2, 1).contiguous(), b.hc).permute(0, 3, 2, 1).contiguous()
        if b.has_spatial:
            return 1 / 3 * (gate(x, b.hw) + by_height + by_width)
        return 1 / 2 * (by_height + by_width)

    return run


def lsk(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        attn1 = b.conv0(x)
        attn2 = b.conv2(b.conv_spatial(attn1))
        attn1 = b.conv1(attn1)
        attn = torch.cat([attn1, attn2], 1)
        pooled = torch.mean(attn, 1, keepdim=True), torch.max(attn, 1, keepdim=True)[0]
        weights = b.conv_squeeze(torch.cat(pooled, 1)).sigmoid()
        attn = attn1 * weights[:, :1] + attn2 * weights[:, 1:]
        return x * b.conv(attn)

    return _with_projections(b, run)


def lska(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        u = x.clone()
        attn = b.conv0v(b.conv0h(x))
        attn = b.conv_spatial_v(b.conv_spatial_h(attn))
        return u * b.conv1(attn)

    return _with_projections(b, run)


def _with_projections(b: AttentionBlock, run: Forward) -> Forward:
    if not b.project:
        return run
    return lambda x: b.proj_2(run(F.gelu(b.proj_1(x)))) + x.clone()


def residual_attention(b: AttentionBlock) -> Forward:
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


def mhsa(b: AttentionBlock) -> Forward:
    def position_logits(q: Tensor, table: Tensor) -> Tensor:
        """(M, A, B, d), (2 B - 1, d) -> (M, A, A, B, B): the same for all rows of keys."""
        m, a, size, _ = q.shape
        y = (q @ table.mT).reshape(-1, size, len(table))
        y = F.pad(F.pad(y, (0, 1)).flatten(1), (0, len(table) - size))
        y = y.reshape(-1, size + 1, len(table))[:, :size, size - 1 :]
        return y.reshape(m, a, 1, size, size).expand(-1, -1, a, -1, -1)

    def run(x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        channels = b.heads * b.head_channels
        q, k, v = b.qkv(x).split([channels, channels, b.out_channels], 1)
        q, v = (t.reshape(n * b.heads, -1, h * w).mT for t in (q, v))
        logits = q @ k.reshape(n * b.heads, -1, h * w)
        if not b.scale_position:
            logits = logits * b.scale
        height, width = (table.to(q.dtype) for table in b.position(h, w))
        q = q.reshape(n * b.heads, h, w, -1)
        by_column = position_logits(q, width).permute(0, 1, 3, 2, 4)
        by_row = position_logits(q.transpose(1, 2), height).permute(0, 3, 1, 4, 2)
        logits = logits + (by_row + by_column).reshape(-1, h * w, h * w)
        if b.scale_position:
            logits = logits * b.scale
        y = (logits.softmax(-1) @ v).mT.reshape(n, -1, h, w)
        return F.avg_pool2d(y, 2) if b.stride == 2 else y

    return run


def mhsa_timm(b: AttentionBlock) -> Forward:
    from timm.layers.bottleneck_attn import BottleneckAttn

    modules = {}  # by size: each is for one

    def run(x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        if size not in modules:
            module = BottleneckAttn(
                b.in_channels,
                b.out_channels,
                size,
                b.stride,
                b.heads,
                b.head_channels,
                qkv_bias=b.qkv.bias is not None,
                scale_pos_embed=b.scale_position,
            ).to(x)
            with torch.no_grad():
                tables = zip(('height', 'width'), b.position(*size), strict=True)
                state = {f'pos_embed.{side}_rel': table for side, table in tables}
            state |= {f'qkv.{key}': value for key, value in b.qkv.state_dict().items()}
            module.load_state_dict(state)
            modules[size] = module.train(b.training)
        return modules[size](x)

    return run
