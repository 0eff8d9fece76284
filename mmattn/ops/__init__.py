"""The maths of attention as pure functions on tensors; needs torch alone."""

from .affine import affine_sample as affine_sample
from .channel import channel_attention as channel_attention
from .channel import channel_mean as channel_mean
from .channel import channel_shuffle as channel_shuffle
from .channel import context_pool as context_pool
from .channel import first_max as first_max
from .channel import global_pool as global_pool
from .channel import group_similarity as group_similarity
from .channel import scale_halves as scale_halves
from .criss_cross import criss_cross as criss_cross
from .criss_cross import criss_cross_map as criss_cross_map
from .deform_conv import deform_conv as deform_conv
from .layout import channels_last as channels_last
from .layout import match_memory_format as match_memory_format
from .layout import project as project
from .non_local import concatenation_attention as concatenation_attention
from .non_local import concatenation_weights as concatenation_weights
from .non_local import dot_product_attention as dot_product_attention
from .non_local import softmax_attention as softmax_attention
from .non_local import softmax_weights as softmax_weights
from .pairs import Pairs as Pairs
from .precision import disable_autocast as disable_autocast
from .precision import upcast as upcast
from .pyramid import pyramid_pool as pyramid_pool
from .recompute import recompute as recompute
from .resize import resize_bilinear as resize_bilinear
