"""Floor 4: decode heads, backbones and the networks that take `plugins=`."""

from .backbones.cmpese_resnet import CMPESEResNet as CMPESEResNet
from .backbones.cmpese_resnet import CMPESEResNetV1c as CMPESEResNetV1c
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
from .with_plugins import RetinaNet as RetinaNet
