"""How the pipeline of a data set loads an image and its label map, for the check of the data.

Stock steps are described by their decoder, so that a header suffices to know their output. Any
other step is run, without the augmentations of the stock packages.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mmattn.errors import DataError, MmattnError

from .image_io import DEFAULT_IMAGE_DECODING, DEFAULT_LABEL_DECODING, Decoding
from .loading import ImageReader, build_step, describe_failure, needs_annotations, step_class

_STOCK = ('mmcv', 'mmdet', 'mmseg', 'mmattn', 'mmengine')
_DECODERS = ('cv2', 'pillow')  # their output is known from the header of a file


class LoadingSteps:
    """The steps of a pipeline that load a sample, without augmentations.

    Args:
        pipeline: steps of a data set; an empty one loads as the stock steps do by default.

    Attributes:
        image: how a stock step decodes images; None if another step reads them.
        label: how a stock step decodes label maps; None if other steps take part.
        custom: whether a step is not of the stock packages.
        flat: whether one is MMSegmentation's `LoadAnnotations`, whose labels must be (H, W).

    Raises:
        UsageError: a step is not registered, or cannot be built.
    """

    def __init__(self, pipeline: Sequence) -> None:
        steps = list(_flatten(pipeline))
        kinds = [step_class(step) for step in steps]
        custom = [step for step, kind in zip(steps, kinds) if not _is_stock(kind)]
        self.image = _image_decoding(steps, kinds)
        self.label = None if custom else _label_decoding(steps, kinds)
        self.custom, self.flat = bool(custom), _has_flat_labels(kinds)
        self._pipeline = pipeline
        self._steps = [s for s, kind in zip(steps, kinds) if s in custom or _loads(kind)]
        self._built: list[Callable] | None = None
        self._reader: ImageReader | None = None

    def run(self, sample: dict) -> dict:
        """Run the steps on a sample of the data set until it has an image and a label map.

        Raises:
            DataError: a step cannot load it.
        """
        if self._built is None:
            self._built = [build_step(step) for step in self._steps]
        results, what = dict(sample), f'image {sample.get("img_path")}'
        for step in self._built:
            loaded = 'img' in results and 'gt_seg_map' in results
            try:
                results = step(dict(results))
            except MmattnError:
                raise
            except Exception as error:  # a step of the user raises anything
                if loaded:  # not a loader: it may need a step that was left out
                    break
                reason = describe_failure(step, error, 'img' in results)
                raise DataError(f'{what} {reason}') from error
            if results is None:  # training would skip the sample
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
        """Everything that the verdict of a check depends on."""
        return [self.image, self.label, repr(self._steps)]


def load_sample(dataset, index: int) -> dict:
    """A sample as the loading steps of its pipeline give it, without augmentations.

    Args:
        dataset: a built data set without wrappers.
        index: index of the sample.

    Raises:
        DataError: a step cannot load it.
    """
    steps = pipeline_steps(dataset)
    loaders = [_loads(type(step)) or needs_annotations(step) for step in steps]
    end = len(steps) - loaders[::-1].index(True) if any(loaders) else 0
    results = dataset.get_data_info(index)
    what = f'image {results.get("img_path")}'
    for step, loads in zip(steps[:end], loaders):
        if _is_stock(type(step)) and not loads:  # validation resizes before it loads annotations
            continue
        try:
            results = step(results)
        except MmattnError:
            raise
        except Exception as error:  # a step of the user raises anything
            raise DataError(f'{what} {describe_failure(step, error, "img" in results)}.') from error
        if results is None:
            raise DataError(f'{what}: {type(step).__name__} gives none.')
    return results


def pipeline_steps(dataset) -> list:
    """The built steps of a data set's pipeline."""
    pipeline = getattr(dataset, 'pipeline', None) or []
    return list(getattr(pipeline, 'transforms', pipeline))


def label_map_of(results: dict) -> np.ndarray | None:
    """The label map (H, W) in the results of a pipeline; None if there is none of this shape."""
    labels = results.get('gt_seg_map')
    return labels if isinstance(labels, np.ndarray) and labels.ndim == 2 else None


def _image_decoding(steps: list, kinds: list[type]) -> Decoding | None:
    """How a stock step decodes images, the default without any; None if another step reads them."""
    from mmcv.transforms import LoadImageFromFile

    for step, kind in zip(steps, kinds):
        if getattr(kind, 'transform', None) is LoadImageFromFile.transform:
            arguments = step if isinstance(step, dict) else vars(step)
            backend = arguments.get('imdecode_backend') or 'cv2'
            if backend not in _DECODERS:
                return None
            return Decoding(backend, arguments.get('color_type', 'color'))
    others = [k for k in kinds if not _is_stock(k) or (_loads(k) and not _reads_labels(k))]
    return None if others else DEFAULT_IMAGE_DECODING


def _label_decoding(steps: list, kinds: list[type]) -> Decoding | None:
    """How a stock step decodes label maps, the default without any; None if another reads them."""
    from mmseg.datasets.transforms import LoadAnnotations

    for step, kind in zip(steps, kinds):
        if kind is LoadAnnotations:
            arguments = step if isinstance(step, dict) else vars(step)
            backend = arguments.get('imdecode_backend', 'pillow')
            return Decoding(backend, 'unchanged', True) if backend in _DECODERS else None
    return None if any(_loads(k) and _reads_labels(k) for k in kinds) else DEFAULT_LABEL_DECODING


def _has_flat_labels(kinds: list[type]) -> bool:
    from mmseg.datasets.transforms import LoadAnnotations

    return LoadAnnotations in kinds


def _flatten(steps: Sequence) -> Iterator:
    """The steps of a pipeline, with those in wrappers such as RandomApply."""
    for step in steps:
        if isinstance(step, list | tuple):
            yield from _flatten(step)
        elif isinstance(step, dict) and isinstance(step.get('transforms'), list | tuple):
            yield from _flatten(step['transforms'])
        else:
            yield step


def _is_stock(kind: type) -> bool:
    return kind.__module__.split('.')[0] in _STOCK


def _loads(kind: type) -> bool:
    return kind.__name__.startswith('Load')


def _reads_labels(kind: type) -> bool:
    return 'nnotation' in kind.__name__
