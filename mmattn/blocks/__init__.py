"""Floor 2: the attention blocks, one system a file. This list is the table of contents."""

from .criss_cross_attention import CrissCrossAttention as CrissCrossAttention
