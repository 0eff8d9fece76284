"""Memory layouts: channels of a pixel adjacent, or pixels of a channel.

Products over channels are fastest where channels are adjacent; maps come and go as they please.
"""

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """x (N, C, H, W) with adjacent channels, copied where it has others."""
    return x.contiguous(memory_format=torch.channels_last)


def as_adjacent(y: Tensor, x: Tensor) -> Tensor:
    """y with the layout of x, both (N, C, H, W), copied where it has another.

    A sum of two maps of one layout takes a fraction of the time of one of two.
    """
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return channels_last(y) if last else y.contiguous()
