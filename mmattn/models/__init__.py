"""Decode heads, backbones and the networks that take `plugins=`.

Every other detector of mmdet and segmentor of mmseg is here, too, by its own name, and made when
it is first imported: `from mmattn.models import ATSS`.
"""

from mmattn.registry import MODELS as _MODELS

from .backbones.attention_unet import AttentionUNet as AttentionUNet
from .backbones.cmpese_resnet import CMPESEResNet as CMPESEResNet
from .backbones.cmpese_resnet import CMPESEResNetV1c as CMPESEResNetV1c
from .backbones.efficientnet_lite import EfficientNetLite as EfficientNetLite
from .backbones.gated_resnet import GatedResNet as GatedResNet
from .backbones.gated_resnet import GatedResNetV1c as GatedResNetV1c
from .backbones.residual_attention_net import ResidualAttentionNet as ResidualAttentionNet
from .backbones.sknet import SKNet as SKNet
from .heads.ann_head import ANNHead as ANNHead
from .heads.cc_head import CCHead as CCHead
from .heads.da_head import DAHead as DAHead
from .heads.gc_head import GCHead as GCHead
from .heads.nl_head import NLHead as NLHead
from .seg_tta import SegTTAModel as SegTTAModel
from .with_plugins import EncoderDecoder as EncoderDecoder
from .with_plugins import FasterRCNN as FasterRCNN
from .with_plugins import MaskRCNN as MaskRCNN
from .with_plugins import PluginsMixin as _PluginsMixin
from .with_plugins import RetinaNet as RetinaNet


def __getattr__(name: str) -> type:
    network = _MODELS.get_registered(name)
    if not (isinstance(network, type) and issubclass(network, _PluginsMixin)):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return network
