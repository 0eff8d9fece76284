"""Deformable convolution, v1 and v2, by gathering: the reference for MMCV's kernels.

Source: Deformable Convolutional Networks, ICCV 2017, arXiv 1703.06211, eq. 2-3; Deformable
    ConvNets v2, CVPR 2019, arXiv 1811.11168, eq. 1.
"""

import torch
from torch import Tensor


def deform_conv(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """y(p) = sum_k w_k m_k x(p * stride - padding + k * dilation + offset_k(p)), x bilinear.

    Outside of x everything is 0. The groups of the convolution and of the offsets follow from the
    shapes. Needs K times the memory of x: a reference, not a fast path.

    Args:
        x: (N, C, H, W).
        offset: (N, 2 G K, H', W') in pixels, for each of G groups of channels and each of the K
            taps the row, then the column.
        weight: (O, C / groups, kh, kw), K = kh kw.
        bias: (O).
        mask: (N, G K, H', W'), factors of v2; 1 if None.
        stride, padding, dilation: those of the convolution, in pixels.

    Returns:
        (N, O, H', W').
    """
    count, channels, height, width = x.shape
    kh, kw = weight.shape[2:]
    taps, out_size = kh * kw, offset.shape[2:]
    offset_groups = offset.shape[1] // (2 * taps)
    offset = offset.reshape(count, offset_groups, taps, 2, *out_size)
    grid = [torch.arange(n, device=x.device, dtype=x.dtype) for n in (*out_size, kh, kw)]
    tap_row, tap_column = (t.flatten() for t in torch.meshgrid(grid[2], grid[3], indexing='ij'))
    row = grid[0][:, None] * stride - padding + (tap_row * dilation)[:, None, None]
    column = grid[1] * stride - padding + (tap_column * dilation)[:, None, None]
    row, column = row + offset[:, :, :, 0], column + offset[:, :, :, 1]  # (N, G, K, H', W')
    flat = x.reshape(count, offset_groups, channels // offset_groups, height * width)
    top, left = row.floor().detach(), column.floor().detach()
    sampled = 0
    for r, wr in (top, 1 - (row - top)), (top + 1, row - top):
        for c, wc in (left, 1 - (column - left)), (left + 1, column - left):
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            index = (r.clamp(0, height - 1) * width + c.clamp(0, width - 1)).long()
            index = index.flatten(2)[:, :, None].expand(-1, -1, flat.shape[2], -1)
            values = flat.gather(3, index).unflatten(3, (taps, *out_size))
            sampled = sampled + values * (wr * wc * inside)[:, :, None]
    if mask is not None:
        sampled = sampled * mask.reshape(count, offset_groups, 1, taps, *out_size)
    groups = channels // weight.shape[1]
    sampled = sampled.reshape(count, groups, weight.shape[1], taps, *out_size)
    kernels = weight.reshape(groups, -1, weight.shape[1], taps)  # (groups, O / groups, C, K)
    out = torch.einsum('ngckhw,gock->ngohw', sampled, kernels).flatten(1, 2)
    return out if bias is None else out + bias[:, None, None]
