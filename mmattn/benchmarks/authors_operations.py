"""Authors' sequences of operations, restated on the weights of our block, for `baselines.py`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.blocks import AttentionBlock

Forward = Callable[..., Tensor]


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


def spatial_transformer(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        theta = b.localization(x).reshape(-1, 2, 3)
        grid = F.affine_grid(theta, x.shape, align_corners=b.align_corners)
        sample = dict(padding_mode=b.padding_mode, align_corners=b.align_corners)
        return F.grid_sample(x, grid, **sample)

    return run


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
