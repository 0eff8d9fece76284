"""Convolutions and norms of small inputs in fp32 or wider, whatever the dtype of the weights."""

from torch import Tensor, nn
from torch.nn import functional as F


def conv_fp32(x: Tensor, conv: nn.Conv1d | nn.Conv2d) -> Tensor:
    """conv(x) in the dtype of x, which is fp32 or wider; call it without autocast."""
    bias = None if conv.bias is None else conv.bias.to(x.dtype)
    return conv._conv_forward(x, conv.weight.to(x.dtype), bias)


def norm_fp32(x: Tensor, norm: nn.Module) -> Tensor:
    """norm(x) for a batch norm; in training, weights in half precision get x in theirs."""
    if norm.weight.dtype == x.dtype:
        return norm(x)
    if norm.training:
        return norm(x.to(norm.weight.dtype)).to(x.dtype)
    values = norm.running_mean, norm.running_var, norm.weight, norm.bias
    return F.batch_norm(x, *(t.to(x.dtype) for t in values), eps=norm.eps)
