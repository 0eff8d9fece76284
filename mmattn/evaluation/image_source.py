"""Reading the images of a test once more, as its pipelines do, to draw on them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmattn.datasets.image_io import read_image
from mmattn.datasets.loading import ImageReader, to_display
from mmattn.visualization.palette import palette_of

from .output_names import image_paths, leaf_datasets


class _Style(NamedTuple):
    """How to draw the images of one data set of a test.

    Attributes:
        reader: reads an image as the pipeline does; None without a pipeline.
        classes: names of the classes.
        palette: RGB colour of each class, 0 to 255.
    """

    reader: ImageReader | None
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]


class ImageSource:
    """Images of a test, and the classes and colours of the data set that each is from.

    Args:
        dataset: a built data set, wrappers included.
    """

    def __init__(self, dataset) -> None:
        self._styles: dict[str, _Style] = {}
        for leaf in leaf_datasets(dataset):
            steps = getattr(getattr(leaf, 'pipeline', None), 'transforms', None)
            reader, meta = ImageReader(steps) if steps else None, leaf.metainfo
            style = _Style(reader, meta['classes'], palette_of(meta))
            self._styles |= dict.fromkeys(map(str, image_paths(leaf)), style)

    def read(self, path: str) -> np.ndarray:
        """An image as the loader of its pipeline gives it, (H, W, 3) uint8 BGR.

        Raises:
            DataError: it cannot be read.
        """
        reader = self._style(path).reader
        if reader is None:
            return read_image(path)
        return to_display(reader.load(path).image, reader.rgb)

    def style(self, path: str) -> dict[str, Sequence]:
        """`classes` and `palette` for the drawing functions of `mmattn.visualization`."""
        style = self._style(path)
        return dict(classes=style.classes, palette=style.palette)

    def _style(self, path: str) -> _Style:
        # a transform of the pipeline may have changed the path
        return self._styles.get(str(path)) or next(iter(self._styles.values()))
