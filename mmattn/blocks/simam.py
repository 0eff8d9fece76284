"""SimAM: each value is gated by how far it lies from the mean of its channel, without weights.

Source: SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks,
    ICML 2021, PMLR 139, eq. 5-6.
Reference code: ZjjConan/SimAM, networks/attentions/simam_module.py. Differs from it in: a map of
    one pixel has the gate sigmoid(1 / 2), not NaN; half precision does not overflow; lambda is
    above 0, so that a constant map has a gradient. As in the code, and unlike the paper, the
    variance is the unbiased one. The authors trained on ImageNet and COCO with lambda 0.1.
"""

import math

from torch import Tensor

from mmattn.ops import simam, simam_gate
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded
from .layers.scale import Scale


@MODELS.register_module()
class SimAM(AttentionBlock):
    """y = x * sigmoid((x - mean)^2 / (4 (variance + lambda)) + 1 / 2).

    (N, C, H, W) -> same shape and dtype. No parameters with init='paper'.

    Args:
        in_channels: C, only to check the input; any number if None.
        e_lambda: lambda, in units of x squared; above 0.
        init: 'paper' (gates from 0.62 to 1) or 'identity' (y = x + rho * (x * gate - x), with rho,
            a parameter, 0).

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'simam'
    kind = 'every value'
    examples = (dict(in_channels=32), dict(in_channels=6, e_lambda=0.1))

    def __init__(
        self, in_channels: int | None = None, *, e_lambda: float = 1e-4, init: str = 'paper'
    ) -> None:
        super().__init__(1 if in_channels is None else in_channels, init)
        is_number = isinstance(e_lambda, int | float) and not isinstance(e_lambda, bool)
        self._check(
            is_number and 0 < e_lambda < math.inf, f'{e_lambda=}, allowed finite numbers above 0'
        )
        self.in_channels, self.e_lambda = in_channels, e_lambda
        self.rho = Scale(0) if init == 'identity' else None

    @recorded('mask')
    def gate(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> same shape, in (0.62, 1)."""
        return simam_gate(x, self.e_lambda).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if self._recorder is not None:
            self.gate(x)  # otherwise the gates are never held
        return simam(x, self.e_lambda, None if self.rho is None else self.rho.scale)
