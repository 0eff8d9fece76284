"""Baselines that are modules of MMCV, MMSegmentation or timm, or torch's fused attention.

Each function takes our block and returns a callable that computes the same with the same weights.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.blocks import AttentionBlock

from .authors_operations import Forward
from .timing import BaselineUnsupported


def eca_timm(b: AttentionBlock) -> Forward:
    layers = _timm_layers()
    cls = layers.CecaModule if b.circular else layers.EcaModule
    return _with_our_weights(b, cls(kernel_size=b.kernel_size))


def coordinate_attention_timm(b: AttentionBlock) -> Forward:
    conv, cls = b.reduce.conv, _timm_layers('coord_attn').CoordAttn
    module = cls(b.in_channels, rd_channels=conv.out_channels, bias=conv.bias is not None)
    names = dict(conv1='reduce.conv', bn1='reduce.bn', conv_h='rows', conv_w='columns')
    return _with_renamed_weights(b, module, names)


def se_timm(b: AttentionBlock) -> Forward:
    module = _timm_layers().SEModule(b.in_channels, rd_channels=b.fc1.out_features, bias=b.bias)
    return _with_renamed_weights(b, module, dict(fc1='fc1', fc2='fc2'))


def context_block(b: AttentionBlock) -> Forward:
    from mmcv.cnn import ContextBlock

    return _with_our_weights(
        b, ContextBlock(b.in_channels, b.ratio, b.pooling_type, b.fusion_types)
    )


def context_block_timm(b: AttentionBlock) -> Forward:
    width = b.channel_add_conv[0].out_channels
    module = _timm_layers().GlobalContext(
        b.in_channels, fuse_add=True, fuse_scale=False, rd_channels=width
    )
    module.mlp_add.norm.eps = b.channel_add_conv[1].eps  # timm's: 1e-6
    layers = dict(fc1=0, norm=1, fc2=3)
    names = {f'mlp_add.{name}': f'channel_add_conv.{i}' for name, i in layers.items()}
    return _with_renamed_weights(b, module, dict(conv_attn='conv_mask') | names)


def non_local(b: AttentionBlock) -> Forward:
    from mmcv.cnn import NonLocal2d

    names = 'in_channels', 'sub_sample', 'reduction', 'use_scale', 'norm_cfg', 'mode'
    module = _with_our_weights(b, NonLocal2d(**{name: b.arguments[name] for name in names}))
    if b.mode == 'concatenation':
        module.register_forward_pre_hook(_refuse_gradients)
    return module


def _refuse_gradients(module: nn.Module, inputs: tuple[Tensor]) -> None:
    if inputs[0].requires_grad:
        raise BaselineUnsupported('mmcv divides in place what its backward pass needs')


def non_local_sdpa(b: AttentionBlock) -> Forward:
    """Torch's fused attention between the convolutions of a softmax mode."""

    def run(x: Tensor) -> Tensor:
        q, k = (x, x) if b.mode == 'gaussian' else (b.theta(x), b.phi(x))
        scale = b.scale if b.mode == 'embedded_gaussian' else 1
        return x + b.conv_out(_fused_attention(q, k, b.g(x), scale))

    return run


def pam_sdpa(b: AttentionBlock) -> Forward:
    def run(x: Tensor) -> Tensor:
        context = _fused_attention(b.query_project(x), b.key_project(x), b.value_project(x), 1)
        return b.gamma(context) + x

    return run


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Maps (N, E, H, W), (N, E, H, W), (N, C, H, W) -> (N, C, H, W)."""
    size = v.shape[2:]
    q, k, v = (t.flatten(2).mT[:, None] for t in (q, k, v))  # one head
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[:, 0].mT.unflatten(2, size)


def non_local_timm(b: AttentionBlock) -> Forward:
    module = _timm_layers().NonLocalAttn(b.in_channels, rd_channels=b.inter_channels)
    module.scale, module.norm = b.scale, nn.Identity()  # timm's: in_channels**-0.5, batch norm
    names = dict(t='theta.conv', p='phi.conv', g='g.conv', z='conv_out.conv')
    return _with_renamed_weights(b, module, names)


def dot_product_core(b: nn.Module) -> Forward:
    from mmcv.cnn import NonLocal2d

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = NonLocal2d.dot_product(None, q.mT, k)  # the method uses nothing of its module
        return (weights @ v.mT).mT

    return run


def criss_cross(b: AttentionBlock) -> Forward:
    from mmcv.ops import CrissCrossAttention

    return nn.Sequential(*b.recurrence * [_with_our_weights(b, CrissCrossAttention(b.in_channels))])


def apnb(b: AttentionBlock) -> Forward:
    from mmseg.models.decode_heads.ann_head import APNB

    return _with_our_weights(b, APNB(b.in_channels, *_asymmetric(b)))


def afnb(b: AttentionBlock) -> Forward:
    from mmseg.models.decode_heads.ann_head import AFNB

    return _with_our_weights(b, AFNB(b.in_channels, b.high_in_channels, *_asymmetric(b)))


def ann_head(b: nn.Module) -> Forward:
    from mmseg.models.decode_heads import ANNHead

    stock = type(b)(ANNHead, b.arguments)
    stock.head.dropout = nn.Identity()  # mmseg calls it, but leaves it None at a ratio of 0
    return _with_our_weights(b, stock)


def without_attention(b: nn.Module) -> Forward:
    """The network without its blocks."""
    stock = b.without_attention()
    weights = b.state_dict()
    stock.load_state_dict({key: weights[key] for key in stock.state_dict()})
    return stock.to(b.image.device, b.image.dtype).train(b.training)


def dot_product_mode(b: AttentionBlock) -> Forward:
    """Our block with another pairwise function, to compare costs: it computes something else."""
    return _as_ours(b, type(b)(b.in_channels, mode='dot_product'))


def pam(b: AttentionBlock) -> Forward:
    from mmseg.models.decode_heads.da_head import PAM

    return _with_our_weights(b, PAM(b.in_channels, b.query_project.out_channels))


def cam(b: AttentionBlock) -> Forward:
    from mmseg.models.decode_heads.da_head import CAM

    return _with_our_weights(b, CAM())


def dual_attention(b: AttentionBlock) -> Forward:
    return _as_ours(b, _BothAttentions(pam(b.pam), cam(b.cam)))


class _BothAttentions(nn.Module):
    """The sum of PAM and CAM, whose residual counts once."""

    def __init__(self, positions: nn.Module, channels: nn.Module) -> None:
        super().__init__()
        self.positions, self.channels = positions, channels

    def forward(self, x: Tensor) -> Tensor:
        return self.positions(x) + self.channels(x) - x


def mask_rcnn_with_mmcv_plugins(b: nn.Module) -> Forward:
    """MMDetection's network with MMCV's block in it."""
    return _with_our_weights(b, b.of_mmdet())


def _asymmetric(b: AttentionBlock) -> tuple:
    stage = b.stages[0]
    a = b.arguments
    return (
        stage.value_project.out_channels,
        stage.out_project.out_channels,
        a['query_scales'],
        a['key_pool_scales'],
        a['conv_cfg'],
        a['norm_cfg'],
        a['act_cfg'],
    )


def _with_our_weights(block: AttentionBlock, module: nn.Module) -> nn.Module:
    """A module with the weights, dtype, device and mode of our block."""
    module = _as_ours(block, module)
    module.load_state_dict(block.state_dict())
    return module


def _with_renamed_weights(
    block: AttentionBlock, module: nn.Module, names: dict[str, str]
) -> nn.Module:
    """As `_with_our_weights`, with `names` mapping layers of the module to layers of our block."""
    ours, state = block.state_dict(), module.state_dict()
    for key, value in state.items():
        layer, _, kind = key.rpartition('.')
        state[key] = ours[f'{names[layer]}.{kind}'].reshape(value.shape)
    module = _as_ours(block, module)
    module.load_state_dict(state)
    return module


def _as_ours(block: AttentionBlock, module: nn.Module) -> nn.Module:
    """A module in the dtype, device and mode of our block, which need not have parameters."""
    value = next(block.parameters(), None)
    return (module if value is None else module.to(value.device, value.dtype)).train(block.training)


def mhsa_timm(b: AttentionBlock) -> Forward:
    return _BottleneckAttention(b)


class _BottleneckAttention(nn.Module):
    """timm's block, which is for one size of the map: the first that comes."""

    def __init__(self, block: AttentionBlock) -> None:
        super().__init__()
        self.block, self.attention = [block], None  # in a list, so that it is no part of this

    def forward(self, x: Tensor) -> Tensor:
        if self.attention is None:
            self.attention = self._build(self.block[0], x)
        return self.attention(x)

    def _build(self, b: AttentionBlock, x: Tensor) -> nn.Module:
        size = tuple(x.shape[2:])
        module = (
            _timm_layers('bottleneck_attn')
            .BottleneckAttn(
                b.in_channels,
                b.out_channels,
                size,
                b.stride,
                b.heads,
                b.head_channels,
                qkv_bias=b.qkv.bias is not None,
                scale_pos_embed=b.scale_position,
            )
            .to(x)
        )
        with torch.no_grad():
            tables = zip(('height', 'width'), b.position(*size), strict=True)
            state = {f'pos_embed.{side}_rel': table for side, table in tables}
        state |= {f'qkv.{key}': value for key, value in b.qkv.state_dict().items()}
        module.load_state_dict(state)
        return module.train(b.training)


def _timm_layers(name: str = '') -> ModuleType:
    """`timm.layers` or a module in it, also where torchvision has no build for this torch."""
    path = f'timm.layers.{name}'.rstrip('.')
    with contextlib.suppress(ImportError, RuntimeError):
        return importlib.import_module(path)
    for module in [name for name in sys.modules if name.partition('.')[0] == 'timm']:
        del sys.modules[module]
    # without its networks, which need torchvision; of it, the layers need one class
    package = ModuleType('timm')
    package.__path__ = list(importlib.util.find_spec('timm').submodule_search_locations)
    names = 'torchvision', 'torchvision.ops', 'torchvision.ops.misc'
    stubs = {name: ModuleType(name) for name in names}
    stubs['torchvision.ops.misc'].FrozenBatchNorm2d = type('FrozenBatchNorm2d', (nn.Module,), {})
    with _replaced_modules(stubs | {'timm': package}):
        return importlib.import_module(path)


@contextlib.contextmanager
def _replaced_modules(modules: dict[str, ModuleType]) -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
