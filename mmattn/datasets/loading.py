"""Reading an image as a config does: its pipeline applied to a file, a frame or an array.

A pipeline has a loader (8 bits or 16, one channel or five bands, with or without EXIF orientation,
or a custom step), steps that need annotations, and the rest. Training and testing run all of it;
inference runs it without the steps that need annotations.
"""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from mmengine.registry import TRANSFORMS

from mmattn.errors import DataError, MmattnError, UsageError, explain
from mmattn.log import warn

from . import image_io, image_limits

_ANNOTATION_WORDS = ('annotation', 'proposal', 'label', 'segmap', 'gt')  # in names of steps
_ANNOTATION_KEYS = ('gt_', 'seg_map_path', 'instances', 'proposals', 'depth_map_path')
_DECODERS = {'tifffile': 'tifffile', 'turbojpeg': 'PyTurboJPEG', 'pillow': 'Pillow'}
_COMMON_SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.gif', '.webp'}  # known to Pillow or OpenCV
_GRAY = {'grayscale', 'grayscale_ignore_orientation'}
_COLOUR = {'color', 'color_ignore_orientation'}


def step_class(step: dict | Callable) -> type:
    """The class of a step of a pipeline.

    Args:
        step: config, whose `type` is a name with or without scope, or a class; or the step itself.

    Raises:
        UsageError: no such step is registered.
    """
    if not isinstance(step, dict):
        return type(step)
    kind = step['type']
    if isinstance(kind, str):
        with TRANSFORMS.switch_scope_and_registry(None) as registry:
            kind = registry.get(step['type'])
    if kind is None:
        raise UsageError(f'pipeline: no step {step["type"]} is registered.')
    return kind


def needs_annotations(step: dict | Callable) -> bool:
    """Whether a step reads annotations, which inference does not have."""
    from mmcv.transforms import LoadAnnotations

    kind = step_class(step)
    if isinstance(kind, type) and issubclass(kind, LoadAnnotations):
        return True
    name = getattr(kind, '__name__', '').lower()
    if name == 'filterannotations':
        return True
    return name.startswith(('load', 'read')) and any(word in name for word in _ANNOTATION_WORDS)


def without_annotations(steps: Sequence) -> list:
    """The steps of a pipeline, wrapped ones included, without those that read annotations."""
    remaining = []
    for step in steps:
        if isinstance(step, list | tuple):  # TestTimeAug has lists of alternatives
            remaining.append(without_annotations(step))
        elif not needs_annotations(step):
            if isinstance(step, dict) and isinstance(step.get('transforms'), list | tuple):
                step = dict(step, transforms=without_annotations(step['transforms']))
            remaining.append(step)
    return [step for step in remaining if step != []]


class Loaded(NamedTuple):
    """An image as the loader of a config gives it.

    Attributes:
        results: output of the steps so far; the image is under `img`.
        done: number of steps that have run.
    """

    results: dict
    done: int

    @property
    def image(self) -> np.ndarray:
        return self.results['img']


class ImageReader:
    """Reads images as a test pipeline does, and prepares them for its network.

    Example::

        reader = ImageReader(cfg.test_dataloader.dataset.pipeline)
        loaded = reader.load('photo.tif')  # loaded.image is what the config's loader gives
        prepared = reader.prepare(loaded)

    Args:
        pipeline: steps; those that read annotations are left out.
        common: keys that the data set adds to each image, such as `reduce_zero_label`.

    Attributes:
        loader: the step that reads an image.
        descriptions: text per step, with its arguments.
        left_out: steps that turned out to need annotations.
        rgb: whether colours are in the order of the file; otherwise they are BGR.

    Raises:
        UsageError: a step cannot be built, or its decoder is not installed.
    """

    def __init__(self, pipeline: Sequence, common: dict | None = None) -> None:
        self.common = dict(common or {})
        steps = without_annotations(pipeline)
        if not steps:
            raise UsageError('the test pipeline has no step that reads an image.')
        self.steps = [build_step(step) for step in steps]
        self.descriptions = [_description(step) for step in steps]
        self.left_out: list[Callable] = []
        names = [type(step).__name__.lower() for step in self.steps]
        self.first = next((i for i, n in enumerate(names) if n.startswith(('load', 'read'))), 0)
        self.loader = self.steps[self.first]
        decoder = getattr(self.loader, 'imdecode_backend', None)
        self.rgb = decoder == 'tifffile'
        module = 'turbojpeg' if decoder == 'turbojpeg' else 'tifffile'
        if decoder in ('turbojpeg', 'tifffile') and importlib.util.find_spec(module) is None:
            raise UsageError(
                f'{type(self.loader).__name__}: imdecode_backend={decoder!r}: {_DECODERS[decoder]} '
                f'is not installed. Run: pip install {_DECODERS[decoder]}'
            )

    def load(self, path: str | Path) -> Loaded:
        """Run the steps on a file until one of them gives the image.

        Raises:
            DataError: the file does not exist, is cut short, is larger than `--max-megapixels`, or
                the loader cannot read it.
        """
        check_file(path)
        return self._run(str(path), f'image {path}')

    def of_frame(self, frame: np.ndarray) -> Loaded:
        """As `load`, from a frame of a video, (H, W, 3) uint8 BGR, as if it were a PNG."""
        if self.image_format == ('uint8', 3):
            return self.of_array(frame)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'frame.png')
            cv2.imwrite(path, frame)
            return self._run(path, 'a frame of a video')

    def of_array(self, image: np.ndarray) -> Loaded:
        """As `load`, from an image in memory, as the loader would give it.

        Raises:
            DataError: its type or channels are not those that the loader gives.
        """
        image = self._checked(image)
        if getattr(self.loader, 'to_float32', False):
            image = image.astype(np.float32)
        size = image.shape[:2]
        results = dict(deepcopy(self.common), img_path=None, img_id=0)
        results |= dict(img=image, img_shape=size, ori_shape=size)
        return Loaded(results, self.first + 1)

    def prepare(self, loaded: Loaded, what: str = 'the image') -> dict:
        """The input of the network, from the result of `load`, `of_frame` or `of_array`."""
        results = dict(loaded.results)
        for index in range(loaded.done, len(self.steps)):
            results = self._step(index, results, what)
        return results

    def _run(self, path: str, what: str) -> Loaded:
        """Run the steps up to the one that gives the image."""
        results = dict(deepcopy(self.common), img_path=path, img_id=0)
        for index in range(len(self.steps)):
            results = self._step(index, results, what)
            if results.get('img') is not None:
                return Loaded(results, index + 1)
        raise DataError(f'{what}: no step of the test pipeline gives an image.')

    def _step(self, index: int, results: dict, what: str) -> dict:
        step = self.steps[index]
        before = dict(results)
        try:
            after = step(results)
        except Exception as error:
            key = _missing_annotation(error) if 'img' in before else ''
            if key:
                self._leave_out(step, key)
                return before
            if isinstance(error, MmattnError) or explain(error):
                raise
            raise DataError(f'{what} {describe_failure(step, error, "img" in before)}.') from error
        if after is None:
            raise DataError(f'{what}: {type(step).__name__} of the test pipeline gives none.')
        return after

    def _leave_out(self, step: Callable, key: str) -> None:
        if step not in self.left_out:
            self.left_out.append(step)
            warn(
                f'{type(step).__name__} of the test pipeline asks for {key!r}, which only '
                'annotations have: it is left out.'
            )

    @property
    def image_format(self) -> tuple[str, int] | None:
        """Type and number of channels that the loader gives; None where they depend on the file."""
        from mmcv.transforms import LoadImageFromFile

        kind = type(self.loader)
        custom = getattr(kind, 'transform', None) is not LoadImageFromFile.transform
        if custom or self.rgb:
            return None
        colour = self.loader.color_type
        return ('uint8', 3) if colour in _COLOUR else ('uint8', 1) if colour in _GRAY else None

    def _checked(self, image: np.ndarray) -> np.ndarray:
        image_format, name = self.image_format, type(self.loader).__name__
        if not isinstance(image, np.ndarray):
            raise DataError(f'the image is a {type(image).__name__}: give an array or a path.')
        given = f'an array of {image.dtype} {_shape(image)}'
        if image.ndim not in (2, 3) or 0 in image.shape or image.dtype.kind not in 'uif':
            raise DataError(f'{given} is no image: expected are numbers (height, width, channels).')
        if image_format is None:
            return image
        kinds, channels = ['uint8'], image_format[1]
        if self.loader.to_float32:
            kinds.append('float32')
        shape = '(height, width)' if channels == 1 else '(height, width, 3)'
        expected = (
            f'expected is {" or ".join(kinds)} {shape} from 0 to 255, as {name} of the config '
            'gives it. Convert it, or give the path of its file'
        )
        number = image.shape[2] if image.ndim == 3 else 1
        if image.dtype.name not in kinds or number != channels:
            raise DataError(f'{given}: {expected}.')
        if image.dtype.kind == 'f' and image.max() <= 1 and (image % 1).any():
            raise DataError(f'{given} from {image.min():.3g} to {image.max():.3g}: {expected}.')
        return image[..., 0] if channels == 1 and image.ndim == 3 else image


def check_file(path: str | Path) -> None:
    """Refuse an image by its header and its end, before it is decoded.

    Raises:
        DataError: it does not exist, is a folder, is cut short, or is larger than
            `--max-megapixels`.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f'image {path} is a folder: name the images in it.')
    if not path.exists():
        raise DataError(f'image {path} does not exist.')
    try:
        with image_io.pillow_open(path) as opened:
            end = image_io.END_MARKERS.get(opened.format)
    except (
        image_io.PILLOW_ERRORS
    ) as error:  # five bands, e.g.: the loader of the config may read it
        image_limits.check_megapixels(f'image {path} declares', _tiff_pixels(path))
        common = path.suffix.lower() in _COMMON_SUFFIXES and not cv2.haveImageReader(str(path))
        if common:
            raise DataError(f'image {path} cannot be read: it is damaged or no image.') from error
        return
    if end and end not in image_io.read_tail(str(path)):
        raise DataError(f'image {path} is cut short: its end is missing.')


def _tiff_pixels(path: Path) -> int:
    """Pixels of a TIFF that Pillow cannot read, bands in any order; 0 if unknown."""
    try:
        import tifffile

        with tifffile.TiffFile(path) as opened:
            shape = opened.series[0].shape
        return prod(sorted(shape)[-2:])
    except Exception:  # not installed; no TIFF
        return 0


def build_step(step: dict | Callable) -> Callable:
    """Build a step of a pipeline, unless it is built already.

    Raises:
        UsageError: it cannot be built.
    """
    if not isinstance(step, dict):
        return step
    try:
        return TRANSFORMS.build(step)
    except (TypeError, ValueError, RuntimeError, AssertionError, ImportError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        name = step_class(step).__name__
        raise UsageError(f'pipeline: step {name} cannot be built: {reason}') from error


def _description(step: dict | Callable) -> str:
    """A step as a call with its arguments."""
    arguments = step.items() if isinstance(step, dict) else ()
    values = ', '.join(f'{key}={value!r}' for key, value in arguments if key != 'type')
    return f'{step_class(step).__name__}({values})'


def _missing_annotation(error: Exception) -> str:
    """The key that a step did not find, if only annotations have it; otherwise empty."""
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    return key if isinstance(key, str) and key.startswith(_ANNOTATION_KEYS) else ''


def describe_failure(step: Callable, error: Exception, is_loaded: bool) -> str:
    """Why a step failed on an image, as the end of a sentence.

    Args:
        step: the step.
        error: its exception.
        is_loaded: whether the image was read before.
    """
    name = type(step).__name__
    verb = 'cannot be prepared' if is_loaded else 'cannot be read'
    lines = str(error).strip().splitlines()
    if isinstance(error, KeyError) and error.args:
        return (
            f'{verb} by {name}: it asks for {error.args[0]!r}, which a single image does not have'
        )
    unknown = type(error).__name__ in ('UnidentifiedImageError', 'TiffFileError', 'error')
    if not is_loaded and (unknown or (lines and lines[0].startswith('failed to load image'))):
        return f'cannot be read by {name}: it is damaged or no image'
    reason = f': {lines[0]}' if lines else ''
    return f'{verb} by {name}: {type(error).__name__}{reason}'


def _shape(image: np.ndarray) -> str:
    return f'({", ".join(map(str, image.shape))})'


def to_display(image: np.ndarray, rgb: bool = False) -> np.ndarray:
    """An image of any type and channels as (H, W, 3) uint8 BGR, to draw on; a copy.

    The first three channels are shown, or the first one of two. Images with values outside of 0 to
    255 are scaled from their least to their largest value; values that are not finite are black.

    Args:
        image: (H, W) or (H, W, C), as a loader gives it.
        rgb: whether the first three channels are red, green and blue, not blue, green and red.
    """
    image = image[..., None] if image.ndim == 2 else image
    channels = image.shape[2]
    image = image[..., :3] if channels >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if rgb and channels >= 3:
        image = image[..., ::-1]
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image).copy()
    image = image.astype(np.float64)
    finite = np.isfinite(image)
    values = image[finite]
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    image = np.where(finite, image, low)
    if low < 0 or not 1 < high <= 255:
        image = (image - low) * (255 / (high - low) if high > low else 0.0)
    image = np.where(finite, image, 0)
    return np.ascontiguousarray(image.round().astype(np.uint8))


def is_plain(image: np.ndarray) -> bool:
    """Whether `to_display` shows an image unchanged: 8 bits, three channels."""
    return image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
