"""Spatial transformer: the map is resampled by an affine transform that is predicted from it.

Source: Spatial Transformer Networks, NIPS 2015, arXiv 1506.02025, eq. 1 and 5.
Reference code: pytorch/tutorials, intermediate_source/spatial_transformer_tutorial.py. Differs from
    it in: any number of channels and any size; border padding by default; the identity transform
    returns its input exactly.
"""

from torch import Tensor, nn

from mmattn.ops import affine_sample, disable_autocast, pyramid_pool
from mmattn.registry import MODELS

from .base import AttentionBlock, recorded

_WIDTH, _GRID = 32, 4  # default localization: channels and hidden width, side of the pooled grid


class GridPool(nn.Module):
    """Mean over an n x n grid of any map, (N, C, H, W) -> (N, C, n n); exports with any size."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        return pyramid_pool(x, (self.n,))


@MODELS.register_module()
class SpatialTransformer(AttentionBlock):
    """y[i, j] = x at theta (x_t, y_t, 1), bilinear; theta (N, 2, 3) = localization(x).

    (N, C, H, W) -> same shape and dtype. Boxes and masks that belong to the map are not moved.

    Args:
        in_channels: C.
        localization: a module, or its config, from (N, C, H, W) to 6 values an image, computed by
            its last `nn.Linear`. None: 1x1 convolution to 32, mean over a 4x4 grid, two linear
            layers.
        padding_mode: 'border' or 'zeros', the values outside the map.
        align_corners: whether -1 and 1 are the centres of the outermost pixels or their edges.
        init: 'paper' or 'identity'; both start with the identity transform.

    Raises:
        ValueError: an argument out of range; a localization without a last `nn.Linear` of 6 with a
            bias; an input other than (N, in_channels, H, W).
    """

    _abbr_ = 'spatial_transformer'
    kind = 'sampling'
    plugin_memory = 'keep'
    examples = (
        dict(in_channels=8),
        dict(in_channels=4, padding_mode='zeros', align_corners=True),
    )

    def __init__(
        self,
        in_channels: int,
        *,
        localization: nn.Module | dict | None = None,
        padding_mode: str = 'border',
        align_corners: bool = False,
        init: str = 'paper',
    ) -> None:
        super().__init__(in_channels, init)
        self._check_choice('padding_mode', padding_mode, ('border', 'zeros'))
        self.padding_mode, self.align_corners = padding_mode, align_corners
        if localization is None:
            localization = nn.Sequential(
                nn.Conv2d(in_channels, _WIDTH, 1),
                nn.ReLU(inplace=True),
                GridPool(_GRID),
                nn.Flatten(),
                nn.Linear(_WIDTH * _GRID * _GRID, _WIDTH),
                nn.ReLU(inplace=True),
                nn.Linear(_WIDTH, 6),
            )
        elif isinstance(localization, dict):
            localization = MODELS.build(localization)
        self.localization = localization
        linear = [m for m in localization.modules() if isinstance(m, nn.Linear)]
        self._check(
            bool(linear) and linear[-1].out_features == 6 and linear[-1].bias is not None,
            'localization without a last nn.Linear of 6 outputs and a bias, allowed modules that '
            'end in one',
        )
        self.start()

    def start(self) -> None:
        last = [m for m in self.localization.modules() if isinstance(m, nn.Linear)][-1]
        nn.init.zeros_(last.weight)
        last.bias.data.copy_(last.bias.new_tensor([1, 0, 0, 0, 1, 0]))

    @recorded('theta')
    def theta(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 2, 3)."""
        with disable_autocast(x):  # bf16 does not resolve neighbouring pixels
            weight = next(self.localization.parameters())
            return self.localization(x.to(weight.dtype)).reshape(-1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        return affine_sample(x, self.theta(x), None, self.padding_mode, self.align_corners)
