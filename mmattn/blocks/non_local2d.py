"""Non-local block: every position is a weighted sum of all, by one of four pairwise functions.

Source: Non-local Neural Networks, CVPR 2018, arXiv 1711.07971, eq. 1-6 and section 3.3.
Reference code: open-mmlab/mmcv, mmcv/cnn/bricks/non_local.py; AlexHex7/Non-local_pytorch, lib/.
    Differs from both in: 'concatenation' can be trained, and 'dot_product' needs no map over pairs;
    the initialisation of the network does not overwrite its own.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.ops import (
    Pairs,
    concatenation_attention,
    disable_autocast,
    dot_product_attention,
    residual_add,
    softmax_attention,
    upcast,
)
from mmattn.registry import MODELS
from mmattn.torch_compat import HAS_OLD_EXPORT

from .base import PairwiseBlock, recorded, zero
from .layers.conv_norm_act import ConvNormAct, foldable, pointwise

_STD = 0.01  # of the initial weights of g, theta and phi, section 4.1 of the paper
_MODES = ('gaussian', 'embedded_gaussian', 'dot_product', 'concatenation')


@MODELS.register_module()
class NonLocal2d(PairwiseBlock):
    """y = x + conv_out(sum_s f(x[p], x[s]) g(x[s])).

    f is, with theta, phi, g 1x1 convolutions to d = max(C // reduction, 1) channels and S keys:
    'gaussian' softmax_s(x[p] . x[s]); 'embedded_gaussian' softmax_s(theta . phi / sqrt(d)), without
    the root if not `use_scale`; 'dot_product' theta . phi / S; 'concatenation'
    relu(w . [theta ; phi]) / S.

    (N, C, H, W) -> same shape and dtype. Signature and state dict are those of MMCV's `NonLocal2d`.

    Args:
        in_channels: C.
        sub_sample: max-pool phi and g by 2 after their convolutions, a quarter of the keys.
        conv_cfg: config of the convolutions, see `ConvNormAct`.
        reduction: C over d.
        use_scale: whether 'embedded_gaussian' divides by sqrt(d).
        norm_cfg: config of the norm of conv_out, which then has no bias; see `ConvNormAct`.
        mode: the pairwise function f, see above.
        zeros_init: start as the identity: conv_out, or its norm, is 0. Otherwise it is random.
        init: 'paper' or 'identity', the same but for `zeros_init=False`, which 'identity' refuses.

    Raises:
        ValueError: an argument out of range; an input other than (N, in_channels, H, W); with
            `sub_sample`, H or W of 1.
    """

    _abbr_ = 'nonlocal_block'
    kind = 'pairwise'
    plugin_memory = 'keep'
    examples = (
        dict(in_channels=8),
        dict(in_channels=8, mode='gaussian', reduction=1),
        dict(in_channels=8, mode='dot_product', norm_cfg=dict(type='BN')),
        dict(in_channels=8, mode='concatenation'),
        dict(in_channels=8, sub_sample=True, use_scale=False),
        dict(in_channels=8, mode='gaussian', sub_sample=True),
    )

    def __init__(
        self,
        in_channels: int,
        sub_sample: bool = False,
        conv_cfg: dict | None = None,
        reduction: int = 2,
        use_scale: bool = True,
        norm_cfg: dict | None = None,
        mode: str = 'embedded_gaussian',
        zeros_init: bool = True,
        *,
        init: str = 'paper',
    ) -> None:
        super().__init__(in_channels, init)
        self._check_whole(reduction=reduction)
        self._check_choice('mode', mode, _MODES)
        self._check(
            zeros_init or init != 'identity',
            "zeros_init=False contradicts init='identity'; allowed one of the two",
        )
        self.sub_sample, self.reduction, self.use_scale = sub_sample, reduction, use_scale
        self.mode, self.zeros_init = mode, zeros_init
        self.inter_channels = max(in_channels // reduction, 1)
        options = dict(conv_cfg=conv_cfg)
        self.g = ConvNormAct(in_channels, self.inter_channels, 1, **options)
        self.conv_out = ConvNormAct(
            self.inter_channels, in_channels, 1, norm_cfg=norm_cfg, **options
        )
        if mode != 'gaussian':
            self.theta = ConvNormAct(in_channels, self.inter_channels, 1, **options)
            self.phi = ConvNormAct(in_channels, self.inter_channels, 1, **options)
        if mode == 'concatenation':
            self.concat_project = ConvNormAct(2 * self.inter_channels, 1, 1, bias=False)
        if sub_sample:
            pool = nn.MaxPool2d(2)
            self.g = nn.Sequential(self.g, pool)
            self.phi = nn.Sequential(self.phi, pool) if mode != 'gaussian' else pool
        self.start()

    @property
    def limits(self) -> dict[str, str]:
        """Pooling by 2 leaves no key on a map of one row or column."""
        if not self.sub_sample:
            return {}
        limits = dict(any_size='with sub_sample, H and W from 2')
        if HAS_OLD_EXPORT:
            limits['export'] = 'with sub_sample and torch before 2.7, even H and W'
        return limits

    @property
    def dynamic_from(self) -> int:
        """Exporters fix the size of a map that pooling leaves with one pixel."""
        return 4 if self.sub_sample else 2

    @property
    def without_effect(self) -> tuple[str, ...]:
        """The bias of phi adds the same to all logits of a query, which softmax removes."""
        softmax = self.mode == 'embedded_gaussian'
        # max-pooling of phi + bias is max-pooling of phi, plus bias
        return ('phi.conv.bias', 'phi.0.conv.bias') if softmax else ()

    def start(self) -> None:
        for name in ('g',) if self.mode == 'gaussian' else ('g', 'theta', 'phi'):
            layer = self.get_submodule(name)
            conv = (layer if isinstance(layer, ConvNormAct) else layer[0]).conv
            nn.init.normal_(conv.weight, std=_STD)
            nn.init.zeros_(conv.bias)
        last = self.conv_out.conv if self.conv_out.norm is None else self.conv_out.norm
        if self.zeros_init:
            zero(last)
        else:
            nn.init.normal_(last.weight, std=_STD)
            nn.init.zeros_(last.bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, H, W) -> theta (N, E, H, W), phi (N, E, h, w), g (N, d, h, w).

        E is C with mode 'gaussian', and 1 with 'concatenation': the parts of w . [theta ; phi].
        """
        if self.mode == 'gaussian':
            return x, self.phi(x) if self.sub_sample else x, self.g(x)
        if self.mode == 'concatenation':
            w = upcast(self.concat_project.conv.weight.flatten())  # (2 d)
            w_theta, w_phi = w[: self.inter_channels], w[self.inter_channels :]
            logits = self._logits(self.theta, w_theta, x), self._logits(self.phi, w_phi, x)
            return *logits, self.g(x)
        return tuple(pointwise(x, [self.theta, self.phi, self.g]))

    def _logits(self, layer: nn.Module, w: Tensor, x: Tensor) -> Tensor:
        """w . layer(x), (N, 1, h, w) in fp32 or wider; w is folded into the layer if possible."""
        if not foldable(layer):
            return (upcast(layer(x)) * w[:, None, None]).sum(1, keepdim=True)
        with disable_autocast(x):
            conv = layer.conv
            weight, bias = w @ upcast(conv.weight.flatten(1)), w @ upcast(conv.bias)
            return F.conv2d(upcast(x), weight[None, :, None, None], bias[None])

    @property
    def scale(self) -> float:
        """Factor of the logits."""
        is_scaled = self.mode == 'embedded_gaussian' and self.use_scale
        return self.inter_channels**-0.5 if is_scaled else 1.0

    @recorded('pairwise', by='attention_map')
    def attend(self, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        """(N, E, H, W), (N, E, h, w), (N, d, h, w) -> (N, d, H, W)."""
        q, v = theta.flatten(2), g.flatten(2)
        k = q if phi is theta else phi.flatten(2)  # the same tensor takes half of the logits
        if self.mode == 'dot_product':
            y = dot_product_attention(q, k, v)
        elif self.mode == 'concatenation':
            y = concatenation_attention(q[:, 0], k[:, 0], v)
        else:
            y = softmax_attention(q, k, v, self.scale)
        return y.unflatten(2, theta.shape[2:])

    def pairs(self, theta: Tensor, phi: Tensor, g: Tensor) -> Pairs:
        rule = dict(dot_product='mean', concatenation='relu mean').get(self.mode, 'softmax')
        return Pairs(rule, theta, phi, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if self.sub_sample and min(x.shape[2:]) < 2:
            self._check(False, f'input {tuple(x.shape)} with sub_sample=True, allowed H, W from 2')
        if self.conv_out.norm is not None:
            self._check_batch(self.conv_out.norm, x, 'the norm of conv_out')
        context = self.conv_out(self.attend(*self.project(x)))
        return residual_add(x, context)
