"""Global context decode head: two 3x3 convolutions with a global context block between them.

Source: GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, ICCV workshops 2019,
    arXiv 1904.11492, eq. 5.
Reference code: open-mmlab/mmsegmentation, mmseg/models/decode_heads/gc_head.py. Differs from it in:
    the block is ours, so the initialisation of the head does not overwrite its own.
"""

from torch import Tensor

from mmattn.blocks import ContextBlock
from mmattn.registry import MODELS

from .attention_head import AttentionHead


@MODELS.register_module()
class GCHead(AttentionHead):
    """conv3x3 -> global context -> conv3x3 -> [concat with input, conv3x3] -> classifier.

    The state dict is that of MMSegmentation's `GCHead`.

    Args:
        ratio, pooling_type, fusion_types: arguments of `mmattn.ContextBlock`.
        **kwargs: arguments of `mmseg.models.FCNHead`, except `num_convs`, which is 2.

    Raises:
        ValueError: an argument that `mmattn.ContextBlock` refuses.
    """

    def __init__(
        self,
        ratio: float = 1 / 4,
        pooling_type: str = 'att',
        fusion_types: tuple[str, ...] = ('channel_add',),
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.gc_block = ContextBlock(
            self.channels, ratio=ratio, pooling_type=pooling_type, fusion_types=fusion_types
        )

    def attend(self, x: Tensor) -> Tensor:
        return self.gc_block(x)
