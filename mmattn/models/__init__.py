"""Floor 4: decode heads, backbones and the networks that take `plugins=`."""

from .ann_head import ANNHead as ANNHead
from .cc_head import CCHead as CCHead
from .cmpese_resnet import CMPESEResNet as CMPESEResNet
from .cmpese_resnet import CMPESEResNetV1c as CMPESEResNetV1c
from .da_head import DAHead as DAHead
from .gc_head import GCHead as GCHead
from .nl_head import NLHead as NLHead
from .plugged import EncoderDecoder as EncoderDecoder
from .plugged import FasterRCNN as FasterRCNN
from .plugged import MaskRCNN as MaskRCNN
from .plugged import RetinaNet as RetinaNet
from .residual_attention_net import ResidualAttentionNet as ResidualAttentionNet
from .seg_tta import SegTTAModel as SegTTAModel
from .sknet import SKNet as SKNet
