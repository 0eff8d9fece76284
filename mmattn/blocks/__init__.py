"""The attention blocks, one system a file. This list is the table of contents."""

from .afnb import AFNB as AFNB
from .apnb import APNB as APNB
from .bam import BAM as BAM
from .base import PROMISES as PROMISES
from .base import AttentionBlock as AttentionBlock
from .base import PairwiseBlock as PairwiseBlock
from .cam import CAM as CAM
from .cbam import CBAM as CBAM
from .cmpese import CMPESE as CMPESE
from .context_block import ContextBlock as ContextBlock
from .coordinate_attention import CoordinateAttention as CoordinateAttention
from .criss_cross_attention import CrissCrossAttention as CrissCrossAttention
from .dual_attention import DualAttention as DualAttention
from .eca import ECA as ECA
from .non_local2d import NonLocal2d as NonLocal2d
from .pam import PAM as PAM
from .residual_attention import ResidualAttention as ResidualAttention
from .scse import SCSE as SCSE
from .se import SE as SE
from .sge import SGE as SGE
from .shuffle_attention import ShuffleAttention as ShuffleAttention
from .simam import SimAM as SimAM
from .simplified_non_local import SimplifiedNonLocal as SimplifiedNonLocal
from .sk_conv2d import SKConv2d as SKConv2d
from .spatial_transformer import SpatialTransformer as SpatialTransformer
from .triplet_attention import TripletAttention as TripletAttention
