"""Floor 4: decode heads, backbones and the networks that take `plugins=`."""

from .cc_head import CCHead as CCHead
from .cmpese_resnet import CMPESEResNet as CMPESEResNet
from .cmpese_resnet import CMPESEResNetV1c as CMPESEResNetV1c
from .da_head import DAHead as DAHead
from .plugged import EncoderDecoder as EncoderDecoder
from .plugged import FasterRCNN as FasterRCNN
from .plugged import MaskRCNN as MaskRCNN
from .plugged import RetinaNet as RetinaNet
from .residual_attention_net import ResidualAttentionNet as ResidualAttentionNet
from .sknet import SKNet as SKNet
