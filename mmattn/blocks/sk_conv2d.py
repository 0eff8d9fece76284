"""Selective kernel convolution: branches of different receptive fields, mixed per channel.

Source: Selective Kernel Networks, CVPR 2019, arXiv 1903.06586, eq. 1-6.
Reference code: implus/SKNet, models/sknet50.prototxt. Differs from it in: any kernel, stride,
    padding and dilation that a convolution has, so that it can replace one.
"""

from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import AttentionBlock, recorded
from .layers.conv_norm_act import kaiming_normal, pair
from .layers.scale import Scale

_STD = 0.01  # of the initial weights of both 1x1 layers of the selection, in the prototxt


@MODELS.register_module()
class SKConv2d(AttentionBlock):
    """y = sum_i a_i * u_i, u_i = relu(BN(conv_i(x))), a = softmax_i(W2 relu(BN(W1 mean(sum u)))).

    Branch i has dilation (1 + i) * dilation, and padding such that all outputs have the size that
    the convolution would give. W1 leads to d = max(out_channels // reduction, min_channels) values.

    (N, in_channels, H, W) -> (N, out_channels, H', W'), as `nn.Conv2d`.

    Args:
        in_channels: C of the input.
        out_channels: C of the output; in_channels if None.
        kernel_size: odd, one number or (height, width).
        stride, padding, dilation: one number or (height, width); padding None keeps the size at
            stride 1.
        groups: groups of each branch; divides both numbers of channels.
        bias: whether the branches have a bias.
        branches: number of branches, from 2.
        reduction, min_channels: set d, see above.
        init: 'paper', or 'identity': y = c0 + rho (y - c0) with c0 the plain convolution of the
            first branch and rho learned from 0, so that the block starts as the convolution that
            `mmattn.insert` replaces by it.

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W); training
            with batch size 1, where the norm over the pooled vector would see one value.
    """

    _abbr_ = 'sk_conv2d'
    plain = 'convs.0.0'  # module that starts from the weights of the replaced convolution
    kind = 'channel, over branches'
    limits = dict(
        training_on_one_image='the norm of the selection sees one value per channel',
        plugin='it is a convolution: it replaces one',
    )
    examples = (
        dict(in_channels=32),
        dict(in_channels=8, out_channels=12, groups=4, stride=2, branches=3, min_channels=4),
        dict(in_channels=4, groups=1, kernel_size=(1, 5), dilation=2, bias=True),
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | tuple[int, int] = 3,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        dilation: int | tuple[int, int] = 1,
        groups: int = 32,
        bias: bool = False,
        branches: int = 2,
        reduction: int = 16,
        min_channels: int = 32,
        init: str = 'paper',
    ) -> None:
        super().__init__(in_channels, init)
        out_channels = in_channels if out_channels is None else out_channels
        self._check_whole(out_channels=out_channels, min_channels=min_channels, reduction=reduction)
        self._check_groups(groups, in_channels=in_channels, out_channels=out_channels)
        self._check_whole(branches=branches)
        self._check(branches >= 2, f'{branches=}, allowed 2 and more')
        for name, value in dict(kernel_size=kernel_size, stride=stride, dilation=dilation).items():
            for number in pair(value):
                self._check_whole(**{name: number})
        kernel, step = pair(kernel_size), pair(dilation)
        self._check(all(k % 2 for k in kernel), f'{kernel_size=}, allowed odd numbers')
        same = tuple(d * (k - 1) // 2 for k, d in zip(kernel, step, strict=True))
        pads = same if padding is None else pair(padding)
        self._check(min(pads) >= 0, f'{padding=}, allowed whole numbers from 0')
        self.out_channels, self.branches = out_channels, branches
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(
                    in_channels,
                    out_channels,
                    kernel,
                    stride=pair(stride),
                    padding=tuple(p + i * s for p, s in zip(pads, same, strict=True)),
                    dilation=tuple((1 + i) * d for d in step),
                    groups=groups,
                    bias=bias,
                ),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            )
            for i in range(branches)
        )
        width = max(out_channels // reduction, min_channels)
        self.fc1 = nn.Sequential(
            nn.Conv2d(out_channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.fc2 = nn.Conv2d(width, branches * out_channels, 1, bias=False)
        if init == 'identity':
            self.rho = Scale(0)
        self.start()

    @property
    def dynamic_from(self) -> int:
        """Exporters fix the size of a map that strides leave with one pixel."""
        return max(self.convs[0][0].stride) + 1

    def start(self) -> None:
        for branch in self.convs:
            kaiming_normal(branch[0])
        nn.init.normal_(self.fc1[0].weight, std=_STD)
        nn.init.normal_(self.fc2.weight, std=_STD)

    def identity(self, *inputs: Tensor) -> Tensor:
        return self.convs[0][0](inputs[0])

    @recorded('branches')
    def select(self, z: Tensor) -> Tensor:
        """Means of the summed branches (N, C', 1, 1) -> weights (N, branches, C'), sums 1."""
        logits = self.fc2(self.fc1(z)).flatten(1)  # (N, branches C'), the first branch first
        return logits.unflatten(1, (self.branches, -1)).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        self._check_batch(self.fc1[1], x[:, :, :1, :1], 'the batch norm of the selection')
        first = self.convs[0][0](x)
        u = [self.convs[0][2](self.convs[0][1](first)), *(conv(x) for conv in self.convs[1:])]
        z = sum(t.mean((2, 3), keepdim=True) for t in u)
        a = self.select(z).to(u[0].dtype)
        y = sum(u[i] * a[:, i, :, None, None] for i in range(self.branches))
        return first + self.rho(y - first) if self.init == 'identity' else y
