"""ResNet with CMPE-SE in place of residual additions: one gate from residual and identity.

Source: Competitive Inner-Imaging Squeeze and Excitation for Residual Network, 2018,
    arXiv 1807.08920, section 3.
Reference code: scut-aitcm/CompetitiveSENet, src/block/cmpese_resnetv2_block.py (MXNet). Differs
    from it in: the ResNets are the post-activation ones of mmdet and mmseg, whose ReLU after the
    addition stays.
"""

from mmdet.models.backbones import resnet as det
from mmseg.models.backbones import resnet as seg
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmattn.blocks import CMPESE
from mmattn.registry import MODELS


class _CMPESEBlock:
    """relu(CMPESE(residual(x), identity(x))) in a basic block or bottleneck of mmdet or mmseg."""

    def __init__(self, inplanes: int, planes: int, *args, cmpese: dict, **kwargs) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.cmpese = CMPESE(planes * self.expansion, **cmpese)

    def residual(self, x: Tensor) -> Tensor:
        """The branch up to the addition, plugins included."""
        last = 3 if hasattr(self, 'conv3') else 2
        for k in range(1, last + 1):
            x = getattr(self, f'norm{k}')(getattr(self, f'conv{k}')(x))
            if k < last:
                x = self.relu(x)
            if getattr(self, 'with_plugins', False):
                x = self.forward_plugin(x, getattr(self, f'after_conv{k}_plugin_names'))
        return x

    def add(self, x: Tensor) -> Tensor:
        return self.cmpese(self.residual(x), x if self.downsample is None else self.downsample(x))

    def forward(self, x: Tensor) -> Tensor:
        use_checkpoint = self.with_cp and x.requires_grad
        y = checkpoint(self.add, x, use_reentrant=False) if use_checkpoint else self.add(x)
        return self.relu(y)


class _DetBasicBlock(_CMPESEBlock, det.BasicBlock): ...


class _DetBottleneck(_CMPESEBlock, det.Bottleneck): ...


class _SegBasicBlock(_CMPESEBlock, seg.BasicBlock): ...


class _SegBottleneck(_CMPESEBlock, seg.Bottleneck): ...


_BLOCKS = {block.__bases__[1]: block for block in _CMPESEBlock.__subclasses__()}


class _CMPESEResNet:
    """A ResNet of mmdet or mmseg whose residual blocks end in `CMPESE`."""

    def __init__(self, depth: int, *, cmpese: dict | None = None, **kwargs) -> None:
        if depth not in self.arch_settings:
            allowed = ', '.join(map(str, self.arch_settings))
            raise ValueError(f'{type(self).__name__}: {depth=}, allowed {allowed}')
        self.cmpese = cmpese or {}
        super().__init__(depth=depth, **kwargs)

    def make_res_layer(self, block: type[nn.Module], **kwargs) -> nn.Module:
        return super().make_res_layer(block=_BLOCKS[block], cmpese=self.cmpese, **kwargs)


@MODELS.register_module()
class CMPESEResNet(_CMPESEResNet, det.ResNet):
    """mmdet's ResNet with `CMPESE` in place of every residual addition.

    Its state dict is that of the stock network plus `layerI.J.cmpese.*`, which a checkpoint of the
    stock network lacks: in a frozen stage CMPESE then stays at its initial weights, and under
    `norm_eval` its norm at mean 0 and variance 1. With `cmpese=dict(init='identity')` the network
    there computes what the stock network does.

    Args:
        depth: 18, 34, 50, 101 or 152.
        cmpese: arguments of `CMPESE`, except in_channels; default: reduction 16, view 'pair1x1',
            init 'paper'.
        **kwargs: arguments of `mmdet.ResNet`.

    Raises:
        ValueError: an unknown depth, or what `CMPESE` refuses.
    """


@MODELS.register_module()
class CMPESEResNetV1c(_CMPESEResNet, seg.ResNetV1c):
    """mmseg's ResNetV1c with `CMPESE` in place of every residual addition.

    As `CMPESEResNet`; further arguments are those of `mmseg.ResNetV1c`.
    """
