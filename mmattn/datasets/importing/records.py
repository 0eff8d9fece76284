"""A data set as every reader of a format returns it: images with objects, or with label maps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SPLITS = ('train', 'val', 'test')
TASKS = ('detection', 'instances', 'segmentation')
IGNORED = 255  # label that is neither trained nor scored


@dataclass
class SourceObject:
    """An object in an image.

    Attributes:
        name: class name.
        where: its id or number, for messages.
        box: x1, y1, x2, y2 in pixels; None where the outline or the mask gives it.
        polygons: outlines, x and y in turn, in pixels.
        mask: compressed RLE, which covers the image; None where polygons give it.
        is_crowd: whether it is a group of objects, which is neither learnt nor scored.
    """

    name: str
    where: str
    box: list[float] | None = None
    polygons: list[list[float]] = field(default_factory=list)
    mask: dict | None = None
    is_crowd: bool = False

    @property
    def has_mask(self) -> bool:
        return bool(self.polygons) or self.mask is not None


@dataclass
class SourceImage:
    """An image with its annotations.

    Attributes:
        path: the image.
        file: the file or folder of its annotations, for messages.
        size: width and height for which it was annotated; None if the annotations do not say.
        split: 'train', 'val' or 'test'; None where the source has no splits.
        objects: annotated objects.
        labels: label map; None without one.
        is_relative: whether coordinates are fractions of width and height, not pixels.
    """

    path: Path
    file: Path
    size: tuple[int, int] | None = None
    split: str | None = None
    objects: list[SourceObject] = field(default_factory=list)
    labels: Path | None = None
    is_relative: bool = False


@dataclass
class SourceSet:
    """A data set of any format.

    Attributes:
        images: images, each once.
        classes: class names in the order of the source; names that only objects have follow.
        colours: class name -> red, green and blue, where the source has them.
        read_labels: reads a label map as (H, W) integers: indices of classes, `IGNORED`, or -1
            minus a value that is no class; None where images have objects.
        has_colours: whether these values are packed colours, not ids.
        has_class_names: whether the source names the classes of its label maps.
        mask_files: files of the source that are masks, not images.
    """

    images: list[SourceImage]
    classes: list[str] = field(default_factory=list)
    colours: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    read_labels: Callable[[Path], np.ndarray] | None = None
    has_colours: bool = False
    has_class_names: bool = True
    mask_files: set[Path] = field(default_factory=set)


@dataclass(frozen=True)
class ReadOptions:
    """What a user says about the source.

    Attributes:
        classes: class names, in the order that the config will have; None to take the source's.
        colours: class name -> red, green and blue, from a table.
        ignore_labels: values of label maps that are no class.
    """

    classes: tuple[str, ...] | None = None
    colours: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    ignore_labels: tuple[int, ...] = ()
