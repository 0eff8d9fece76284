"""Simplified non-local: one attention map for all queries, so one vector is added everywhere.

Source: GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, ICCV workshops 2019,
    arXiv 1904.11492, eq. 3.
Reference code: none published. Beyond the paper: W_v may be a product of two narrower layers.
"""

from torch import Tensor, nn

from mmattn.ops import context_pool
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded, zero
from .layers.conv_norm_act import kaiming_normal

_STD = 0.01  # of the initial W_v with init='paper', as in the non-local block


@MODELS.register_module()
class SimplifiedNonLocal(AttentionBlock):
    """y = x + W_v sum_p softmax_p(w_k . x[p] + b_k) x[p].

    (N, C, H, W) -> same shape and dtype. W_v is applied to the pooled vector, which equals the
    paper's order as it is linear.

    Args:
        in_channels: C.
        reduction: above 1, W_v = W_out W_in with C // reduction values between; in 1..C.
        init: 'paper' (W_v normal, deviation 0.01) or 'identity' (its last layer 0).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'simplified_non_local'
    kind = 'context'
    examples = (dict(in_channels=16), dict(in_channels=16, reduction=4))
    without_effect = ('conv_mask.bias',)  # the same for all positions: softmax removes it

    def __init__(self, in_channels: int, *, reduction: int = 1, init: str = 'paper') -> None:
        super().__init__(in_channels, init)
        self._check_reduction(reduction, in_channels)
        self.reduction = reduction
        width = in_channels // reduction
        self.conv_mask = nn.Conv2d(in_channels, 1, 1)
        if reduction == 1:
            self.conv_v = nn.Conv2d(in_channels, in_channels, 1, bias=False)
        else:
            self.conv_v = nn.Sequential(
                nn.Conv2d(in_channels, width, 1, bias=False),
                nn.Conv2d(width, in_channels, 1, bias=False),
            )
        self.start()

    def start(self) -> None:
        kaiming_normal(self.conv_mask, 'fan_in')
        last = self.conv_v if self.reduction == 1 else self.conv_v[-1]
        if self.init == 'identity':
            zero(last)
        else:
            nn.init.normal_(last.weight, std=_STD)

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return context_pool(x, self.conv_mask.weight, self.conv_mask.bias)

    @recorded('context', by='context_map')
    def context(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 1, 1)."""
        return self._pool(x)[0][:, :, None, None]

    def context_map(self, queries: Tensor, x: Tensor) -> Tensor:
        """The weights of the positions, (N, 1, H, W); the same for every query."""
        return self._pool(x)[1]

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        return x + self.conv_v(self.context(x)).to(x.dtype)
