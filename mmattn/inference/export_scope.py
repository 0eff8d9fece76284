"""What a config does to an image outside the network, and what a program computes without it."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmengine.dataset import pseudo_collate
from mmengine.model import ImgDataPreprocessor
from mmseg.models import SegDataPreProcessor
from torch import Tensor, nn

from mmattn.datasets.loading import Loaded
from mmattn.models.slide_inference import Sliding

from .predictor import Predictor

if TYPE_CHECKING:
    from mmengine.structures import BaseDataElement

_KNOWN = (DetDataPreprocessor, ImgDataPreprocessor, SegDataPreProcessor)


class Comparison(NamedTuple):
    """How a program differs from what infer computes for an image.

    Attributes:
        size: H and W of the image as it is read.
        logits: greatest difference over the largest logit, the program fed with the image as read.
        labels: share of the pixels that it labels otherwise.
        complete: the difference where all that is not in the program is done outside of it; None
            where the program cannot take the pieces.
    """

    size: tuple[int, int]
    logits: float
    labels: float
    complete: float | None


def left_out(predictor: Predictor) -> list[str]:
    """What the config does with an image outside the network, in words."""
    return [*_steps(predictor), *_padding(predictor), *_windows(predictor)]


def _steps(predictor: Predictor) -> Iterator[str]:
    reader = predictor.reader
    for step, description in list(zip(reader.steps, reader.descriptions, strict=True))[
        reader.first + 1 :
    ]:
        if not type(step).__name__.startswith(('Pack', 'ToTensor', 'Collect')):
            yield description


def _padding(predictor: Predictor) -> Iterator[str]:
    preprocessor = predictor.model.data_preprocessor
    kind = type(preprocessor)
    if kind.forward not in [one.forward for one in _KNOWN]:
        yield f'what {kind.__name__} does besides normalising'
    if isinstance(preprocessor, SegDataPreProcessor):
        cfg = preprocessor.test_cfg or {}
        divisor, size = cfg.get('size_divisor'), cfg.get('size')
    else:
        divisor, size = getattr(preprocessor, 'pad_size_divisor', 1), None
    value = getattr(preprocessor, 'pad_val', getattr(preprocessor, 'pad_value', 0))
    if size:
        yield f'padding to {size[1]}x{size[0]} with {value} after normalising'
    elif (divisor or 1) > 1:
        yield f'padding to multiples of {divisor} with {value} after normalising'


def _windows(predictor: Predictor) -> Iterator[str]:
    cfg = getattr(predictor.model, 'test_cfg', None) or {}
    if predictor.segments and cfg.get('mode') == 'slide':
        try:
            (height, width), (down, across) = Sliding.of(cfg).crop_size, Sliding.of(cfg).stride
        except ValueError:
            return
        yield f'sliding windows of {width}x{height} at strides of {across}x{down}'


def as_read(x: Tensor, preprocessor: nn.Module) -> Tensor:
    """Normalised images (N, C, H, W) -> as they were read."""
    if getattr(preprocessor, '_enable_normalize', False):
        x = x * preprocessor.std.to(x) + preprocessor.mean.to(x)
    flipped = getattr(preprocessor, '_channel_conversion', False) or getattr(
        preprocessor, 'channel_conversion', False
    )
    return x.flip(1) if flipped and x.shape[1] == 3 else x


def normalised(predictor: Predictor, inputs: Tensor | dict) -> Tensor:
    """What the network gets of an image, (1, C, H, W), padding included."""
    if isinstance(inputs, Tensor):
        data = dict(inputs=[inputs])
    else:
        data = pseudo_collate([inputs])
    return predictor.model.data_preprocessor(data, False)['inputs']


def compare_with_infer(
    predictor: Predictor,
    loaded: Loaded,
    sample: 'BaseDataElement',
    image: Tensor | None,
    run: Callable[[Tensor], list[Tensor]],
) -> Comparison:
    """Compare a segmentor's program with what infer computes.

    Args:
        predictor: the network with all that its config does.
        loaded: an image.
        sample: what `predictor` gives for it.
        image: (1, C, H, W) of it that the program can be fed with, maybe padded; None if none.
        run: the program.
    """
    prepared = predictor.prepare(loaded)
    size = tuple(loaded.image.shape[:2])
    wanted, labels = sample.seg_logits.data, sample.pred_sem_seg.data[0].long()
    share, difference = float('nan'), float('nan')
    if image is not None:
        logits = run(image)[0][0, :, : size[0], : size[1]]
        logits = logits.sigmoid() if len(logits) == 1 else logits  # as infer gives them
        difference = _difference(wanted, logits)
        share = (_labels(predictor, logits) != labels).float().mean().item()
    network = predictor.model

    def by_program(inputs: Tensor, _) -> Tensor:
        return run(as_read(inputs, network.data_preprocessor))[0]

    network.encode_decode = by_program
    try:
        rest = _difference(wanted, predictor.predict(prepared).seg_logits.data)
    except (RuntimeError, ValueError, AssertionError):  # pieces smaller than the program takes
        rest = None
    finally:
        del network.encode_decode
    return Comparison(size, difference, share, rest)


def _labels(predictor: Predictor, logits: Tensor) -> Tensor:
    if len(logits) > 1:
        return logits.argmax(0)
    return (logits[0] > predictor.model.decode_head.threshold).long()


def _difference(wanted: Tensor, found: Tensor) -> float:
    return ((wanted - found).abs().max() / wanted.abs().max().clamp(min=1e-12)).item()


def noise(predictor: Predictor, size: tuple[int, int]) -> np.ndarray:
    """An image of noise of the kind that the config reads."""
    generator = np.random.default_rng(0)
    kind, channels = predictor.reader.image_format or ('float32', predictor.channels)
    shape = size if channels == 1 else (*size, channels)
    values = generator.integers(0, 256, shape)
    return values.astype(kind)
