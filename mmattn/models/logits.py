"""The logits that a segmentor predicts with, whether its head returns one map or several.

DANet's head returns three maps, EncNet's a map and classes, a cascade has several heads: which of
it becomes the prediction is what the head's own `predict` knows.
"""

from mmseg.models import EncoderDecoder
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn


def predicted_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Normalised images (N, C, H, W) -> (N, classes, h, w), of the head's size where it has one.

    Raises:
        TypeError: the head predicts with something else than one map.
    """
    size = tuple(x.shape[2:])
    meta = dict(img_shape=size, pad_shape=size, ori_shape=size)
    if not _plain(model):
        logits = model.encode_decode(x, [meta] * len(x))
    else:
        maps, head = model.extract_feat(x), model.decode_head
        head.predict_by_feat = _as_it_is
        try:
            logits = head.predict(maps, [meta], model.test_cfg)
        finally:
            del head.predict_by_feat
    if not isinstance(logits, Tensor) or logits.dim() != 4:
        raise TypeError(f'{type(model.decode_head).__name__} predicts with no single map')
    return logits


def _plain(model: nn.Module) -> bool:
    """Whether one head of its own makes a map, which is then only resized."""
    head = model.decode_head
    return (
        isinstance(head, BaseDecodeHead)
        and type(head).predict_by_feat is BaseDecodeHead.predict_by_feat
        and type(model).encode_decode is EncoderDecoder.encode_decode
    )


def _as_it_is(logits: Tensor, *_, **__) -> Tensor:
    return logits
