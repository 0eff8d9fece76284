"""How the pipeline of a data set loads an image and its label map, for the check of the data.

The stock steps are described by their decoder, so that a header tells what they give. Any other
step is run, without the augmentations of the stock packages.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mmattn.errors import DataError, MmattnError

from .image_io import IMAGES, LABELS, Decoding
from .loading import ImageReader, _build, _why, step_class

_STOCK = ('mmcv', 'mmdet', 'mmseg', 'mmattn', 'mmengine')
_DECODERS = ('cv2', 'pillow')  # what they make of a file is known from its header


class Loading:
    """What a pipeline does to load a sample, augmentations left out.

    Args:
        pipeline: of a data set; an empty one loads as the stock steps do by default.

    Attributes:
        image: how a stock step decodes images; None if another step reads them.
        label: how a stock step decodes label maps; None if other steps take part.
        own: whether steps take part that are not of the stock packages.
        flat: whether MMSegmentation's `LoadAnnotations` does, of whose labels a loss wants (H, W).

    Raises:
        UsageError: a step is not registered, or cannot be built.
    """

    def __init__(self, pipeline: Sequence) -> None:
        steps = list(_flat(pipeline))
        kinds = [step_class(step) for step in steps]
        own = [step for step, kind in zip(steps, kinds) if not _is_stock(kind)]
        self.image = _of_images(steps, kinds)
        self.label = None if own else _of_labels(steps, kinds)
        self.own, self.flat = bool(own), _is_flat(kinds)
        self._pipeline = pipeline
        self._steps = [s for s, kind in zip(steps, kinds) if s in own or _loads(kind)]
        self._built: list[Callable] | None = None
        self._reader: ImageReader | None = None

    def run(self, sample: dict) -> dict:
        """What the steps make of a sample of the data set, until it has image and label map.

        Raises:
            DataError: a step cannot load it.
        """
        if self._built is None:
            self._built = [_build(step) for step in self._steps]
        results, what = dict(sample), f'image {sample.get("img_path")}'
        for step in self._built:
            loaded = 'img' in results and 'gt_seg_map' in results
            try:
                results = step(dict(results))
            except MmattnError:
                raise
            except Exception as error:  # a step of one's own raises anything
                if loaded:  # no loader: it may need what was left out
                    break
                why = _why(step, error, 'img' in results)
                raise DataError(f'{what} {why}') from error
            if results is None:  # none of it is learnt from
                raise DataError(f'{what}: {type(step).__name__} gives none')
        return results

    def shape(self, path: str) -> tuple[int, ...]:
        """(H, W, ...) of an image as the pipeline reads it.

        Raises:
            DataError: it cannot be read.
        """
        if self._reader is None:
            self._reader = ImageReader(self._pipeline or [dict(type='mmcv.LoadImageFromFile')])
        return self._reader.load(path).image.shape

    def describe(self) -> list[Any]:
        """What the verdict of a check depends on."""
        return [self.image, self.label, repr(self._steps)]


def label_map_of(results: dict) -> np.ndarray | None:
    """The label map that a pipeline gave, (H, W) of whole numbers; None if it gave another kind."""
    found = results.get('gt_seg_map')
    if not isinstance(found, np.ndarray) or found.ndim != 2:
        return None
    return found


def _of_images(steps: list, kinds: list[type]) -> Decoding | None:
    """How the stock step decodes images, which is the default; None if another one reads them."""
    from mmcv.transforms import LoadImageFromFile

    for step, kind in zip(steps, kinds):
        if getattr(kind, 'transform', None) is LoadImageFromFile.transform:
            built = step if isinstance(step, dict) else vars(step)
            backend = built.get('imdecode_backend') or 'cv2'
            if backend not in _DECODERS:
                return None
            return Decoding(backend, built.get('color_type', 'color'))
    others = [k for k in kinds if not _is_stock(k) or (_loads(k) and not _reads_labels(k))]
    return None if others else IMAGES


def _of_labels(steps: list, kinds: list[type]) -> Decoding | None:
    """The same of label maps; a pipeline without such a step scores what the default one reads."""
    from mmseg.datasets.transforms import LoadAnnotations

    for step, kind in zip(steps, kinds):
        if kind is LoadAnnotations:
            built = step if isinstance(step, dict) else vars(step)
            backend = built.get('imdecode_backend', 'pillow')
            return Decoding(backend, 'unchanged', True) if backend in _DECODERS else None
    return None if any(_loads(k) and _reads_labels(k) for k in kinds) else LABELS


def _is_flat(kinds: list[type]) -> bool:
    from mmseg.datasets.transforms import LoadAnnotations

    return LoadAnnotations in kinds


def _flat(steps: Sequence) -> Iterator:
    """The steps of a pipeline, with those in wrappers such as RandomApply."""
    for step in steps:
        if isinstance(step, list | tuple):
            yield from _flat(step)
        elif isinstance(step, dict) and isinstance(step.get('transforms'), list | tuple):
            yield from _flat(step['transforms'])
        else:
            yield step


def _is_stock(kind: type) -> bool:
    return kind.__module__.split('.')[0] in _STOCK


def _loads(kind: type) -> bool:
    return kind.__name__.startswith('Load')


def _reads_labels(kind: type) -> bool:
    return 'nnotation' in kind.__name__
