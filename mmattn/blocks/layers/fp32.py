"""Convolutions and norms of small inputs in fp32 or wider, whatever the dtype of the weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_fp32(x: Tensor, conv: nn.Conv1d | nn.Conv2d) -> Tensor:
    """conv(x) in the dtype of x, which is fp32 or wider; call it without autocast."""
    bias = None if conv.bias is None else conv.bias.to(x.dtype)
    return conv._conv_forward(x, conv.weight.to(x.dtype), bias)


def norm_fp32(x: Tensor, norm: nn.Module) -> Tensor:
    """norm(x), of a batch norm in the dtype of x, of another in the dtype of its weight."""
    if norm.weight.dtype == x.dtype:
        return norm(x)
    if type(norm) is not nn.BatchNorm2d:
        return norm(x.to(norm.weight.dtype)).to(x.dtype)
    statistics = norm.running_mean, norm.running_var
    values = [t.to(x.dtype) for t in (*statistics, norm.weight, norm.bias)]
    y = F.batch_norm(x, *values, norm.training, norm.momentum, norm.eps)
    if norm.training:
        with torch.no_grad():
            for kept, value in zip(statistics, values, strict=False):
                kept.copy_(value)
            norm.num_batches_tracked.add_(1)
    return y
