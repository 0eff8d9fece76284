"""Floor 4: decode heads, backbones and the networks that take `plugins=`."""

from .cc_head import CCHead as CCHead
from .da_head import DAHead as DAHead
