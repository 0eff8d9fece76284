"""Scope of an exported program: the steps of a config outside it, and the comparison with infer."""

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

_PREPROCESSORS = (DetDataPreprocessor, ImgDataPreprocessor, SegDataPreProcessor)


class InferComparison(NamedTuple):
    """Differences between a program and infer on one image.

    Attributes:
        size: H and W of the image as loaded.
        logits: largest difference, relative to the largest logit, for the image as loaded.
        labels: share of the pixels with a different label.
        complete: the same difference with the steps outside the program applied around it; None if
            the program cannot take the resulting inputs.
    """

    size: tuple[int, int]
    logits: float
    labels: float
    complete: float | None


def steps_outside(predictor: Predictor) -> list[str]:
    """Descriptions of what the config does to an image outside the network."""
    return [*_transforms(predictor), *_padding(predictor), *_windows(predictor)]


def _transforms(predictor: Predictor) -> Iterator[str]:
    reader = predictor.reader
    for step, description in list(zip(reader.steps, reader.descriptions, strict=True))[
        reader.first + 1 :
    ]:
        if not type(step).__name__.startswith(('Pack', 'ToTensor', 'Collect')):
            yield description


def _padding(predictor: Predictor) -> Iterator[str]:
    preprocessor = predictor.model.data_preprocessor
    kind = type(preprocessor)
    if kind.forward not in [known.forward for known in _PREPROCESSORS]:
        yield f'what {kind.__name__} does in addition to normalising'
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


def denormalise(x: Tensor, preprocessor: nn.Module) -> Tensor:
    """Normalised images (N, C, H, W) -> images as loaded."""
    if getattr(preprocessor, '_enable_normalize', False):
        x = x * preprocessor.std.to(x) + preprocessor.mean.to(x)
    flipped = getattr(preprocessor, '_channel_conversion', False) or getattr(
        preprocessor, 'channel_conversion', False
    )
    return x.flip(1) if flipped and x.shape[1] == 3 else x


def preprocess(predictor: Predictor, inputs: Tensor | dict) -> Tensor:
    """Preprocessed image that the network gets, (1, C, H, W), padding included."""
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
) -> InferComparison:
    """Compare a segmentor's program with infer.

    Args:
        predictor: predictor of the network and its config.
        loaded: image.
        sample: prediction of `predictor` for it.
        image: the image as input of the program, (1, C, H, W), possibly padded; None if it cannot
            be.
        run: program.
    """
    prepared = predictor.prepare(loaded)
    size = tuple(loaded.image.shape[:2])
    expected, labels = sample.seg_logits.data, sample.pred_sem_seg.data[0].long()
    share, difference = float('nan'), float('nan')
    if image is not None:
        logits = run(image)[0][0, :, : size[0], : size[1]]
        logits = logits.sigmoid() if len(logits) == 1 else logits  # as infer returns them
        difference = _relative_difference(expected, logits)
        share = (_labels(predictor, logits) != labels).float().mean().item()
    network = predictor.model

    def run_program(inputs: Tensor, _) -> Tensor:
        return run(denormalise(inputs, network.data_preprocessor))[0]

    network.encode_decode = run_program
    try:
        complete = _relative_difference(expected, predictor.predict(prepared).seg_logits.data)
    except (RuntimeError, ValueError, AssertionError):  # inputs smaller than the program takes
        complete = None
    finally:
        del network.encode_decode
    return InferComparison(size, difference, share, complete)


def _labels(predictor: Predictor, logits: Tensor) -> Tensor:
    if len(logits) > 1:
        return logits.argmax(0)
    return (logits[0] > predictor.model.decode_head.threshold).long()


def _relative_difference(expected: Tensor, actual: Tensor) -> float:
    return ((expected - actual).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def noise_image(predictor: Predictor, size: tuple[int, int]) -> np.ndarray:
    """A noise image of the dtype and channels that the config loads."""
    generator = np.random.default_rng(0)
    kind, channels = predictor.reader.image_format or ('float32', predictor.channels)
    shape = size if channels == 1 else (*size, channels)
    values = generator.integers(0, 256, shape)
    return values.astype(kind)
