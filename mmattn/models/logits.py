"""The logits that a segmentor predicts with, whether its head returns one map or several.

DANet's head returns three maps, EncNet's a map and classes, a cascade has several heads: only the
`predict` of the head knows which of them is the prediction.
"""

from mmseg.models import EncoderDecoder
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn


def predicted_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Normalised images (N, C, H, W) -> (N, classes, h, w).

    (h, w) is the size of the head's output if there is one head whose output is only resized, else
    (H, W).

    Raises:
        TypeError: the prediction is not one map.
    """
    size = tuple(x.shape[2:])
    meta = dict(img_shape=size, pad_shape=size, ori_shape=size)
    if not _has_plain_head(model):
        logits = model.encode_decode(x, [meta] * len(x))
    else:
        maps, head = model.extract_feat(x), model.decode_head
        head.predict_by_feat = _identity
        try:
            logits = head.predict(maps, [meta], model.test_cfg)
        finally:
            del head.predict_by_feat
    if not isinstance(logits, Tensor) or logits.dim() != 4:
        raise TypeError(f'{type(model.decode_head).__name__} predicts with no single map')
    return logits


def _has_plain_head(model: nn.Module) -> bool:
    """Whether the prediction is the output of one head, only resized."""
    head = model.decode_head
    return (
        isinstance(head, BaseDecodeHead)
        and type(head).predict_by_feat is BaseDecodeHead.predict_by_feat
        and type(model).encode_decode is EncoderDecoder.encode_decode
    )


def _identity(logits: Tensor, *_, **__) -> Tensor:
    return logits
