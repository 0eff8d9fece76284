"""Baselines that need no OpenMMLab: formulas of mmcv and mmseg, restated on our block's weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Forward = Callable[[Tensor], Tensor]


def criss_cross_core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(N, E, H, W), (N, E, H, W), (N, C, H, W) -> (N, C, H, W), as in mmcv.ops.cc_attention."""
    height = q.shape[2]
    itself = torch.diag(torch.full((height,), float('inf'), device=q.device, dtype=q.dtype))
    column = (torch.einsum('bchw,bciw->bwhi', q, k) - itself).transpose(1, 2)
    row = torch.einsum('bchw,bchj->bhwj', q, k)
    weights = F.softmax(torch.cat([column, row], -1), -1)
    out = torch.einsum('bciw,bhwi->bchw', v, weights[..., :height])
    return out + torch.einsum('bchj,bhwj->bchw', v, weights[..., height:])


def criss_cross(b: nn.Module) -> Forward:
    def run(x: Tensor) -> Tensor:
        for _ in range(b.recurrence):
            out = criss_cross_core(b.query_conv(x), b.key_conv(x), b.value_conv(x))
            x = (b.gamma(out) + x).contiguous()
        return x

    return run


def softmax_core(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """(N, E, P), (N, E, S), (N, C, S) -> (N, C, P), by the map over all pairs."""
    logits = q.mT @ k
    return (F.softmax(logits if scale == 1 else logits * scale, -1) @ v.mT).mT


def fused_core(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """As `softmax_core`, by torch's attention, called directly."""
    heads = (t.mT.contiguous()[:, None] for t in (q, k, v))
    return F.scaled_dot_product_attention(*heads, scale=scale)[:, 0].mT


def sliced_core(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """As `fused_core`, by slices of 256 values, with q and k padded to their width.

    Kernels for one width of q, k and v take these, and none that is wider.
    """
    parts = v.split(256, 1)
    width = parts[0].shape[1]
    q, k = (F.pad(t, (0, 0, 0, max(0, width - t.shape[1]))) for t in (q, k))
    return torch.cat([fused_core(q, k, part, scale) for part in parts], 1)


Core = Callable[..., Tensor]


def pam(core: Core) -> Callable[[nn.Module], Forward]:
    """mmseg's PAM with a given core."""

    def make(b: nn.Module) -> Forward:
        def run(x: Tensor) -> Tensor:
            q, k, v = (
                layer(x).flatten(2) for layer in (b.query_project, b.key_project, b.value_project)
            )
            return b.gamma(core(q, k, v).reshape(x.shape)) + x

        return run

    return make


def non_local(core: Core) -> Callable[[nn.Module], Forward]:
    """mmcv's NonLocal2d in mode embedded_gaussian with a given core."""

    def make(b: nn.Module) -> Forward:
        def run(x: Tensor) -> Tensor:
            q, k, v = (layer(x).flatten(2) for layer in (b.theta, b.phi, b.g))
            y = core(q, k, v, b.inter_channels**-0.5)
            return x + b.conv_out(y.unflatten(2, x.shape[2:]))

        return run

    return make


def context_block(b: nn.Module) -> Forward:
    def run(x: Tensor) -> Tensor:
        weights = b.conv_mask(x).flatten(2).softmax(2)[..., None]  # (N, 1, P, 1)
        context = torch.matmul(x.flatten(2)[:, None], weights).flatten(1)[:, :, None, None]
        return x + b.channel_add_conv(context)

    return run
