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
