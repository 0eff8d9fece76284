"""What the data sets of a loader hold: objects or pixels per class, sizes, boxes per image.

Objects are counted in the annotations that a data set loads, without reading an image; label maps
are read.
"""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from mmattn.datasets.image_io import PILLOW_ERRORS, pillow_open
from mmattn.datasets.label_maps import LabelMaps
from mmattn.datasets.label_statistics import LabelStatistics
from mmattn.progress import track
from mmattn.visualization.html_charts import Bar, bar_chart, css_colour, histogram, size_chart

SIZES = {'small': 32**2, 'medium': 96**2, 'large': float('inf')}  # px of a box; COCO's limits
_COLOURS = dict(zip(SIZES, ('#56b4e9', '#0072b2', '#1d2330')))


@dataclass
class ObjectCounts:
    """Objects of data sets of mmdet's kind.

    Attributes:
        images: images that the loader gives.
        objects: by class and size, a key of `SIZES`, by the area of the box.
        images_with: images by class that have such an object.
        ignored: objects that are ignored in training and scoring, such as groups.
        per_image: number of objects -> images that have this number.
        sizes: (width, height) in pixels -> images.
    """

    images: int = 0
    objects: Counter = field(default_factory=Counter)
    images_with: Counter = field(default_factory=Counter)
    ignored: int = 0
    per_image: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)

    def add(self, dataset) -> None:
        """Count a built data set without wrappers."""
        name = type(dataset).__name__
        for index in track(range(len(dataset)), total=len(dataset), title=f'counting {name}'):
            info = dataset.get_data_info(index)
            classes = []
            for instance in info.get('instances', ()):
                if instance.get('ignore_flag'):
                    self.ignored += 1
                    continue
                x1, y1, x2, y2 = instance['bbox'][:4]
                area, label = (x2 - x1) * (y2 - y1), int(instance['bbox_label'])
                size = next(size for size, limit in SIZES.items() if area < limit)
                self.objects[label, size] += 1
                classes.append(label)
            self.images += 1
            self.per_image[len(classes)] += 1
            self.images_with.update(set(classes))
            size = info.get('width'), info.get('height')
            size = size if all(size) else _header_size(info.get('img_path'))
            if size:
                self.sizes[size] += 1

    def charts(self, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> list[str]:
        """HTML of the charts; the most frequent class first."""
        totals = [sum(self.objects[i, size] for size in SIZES) for i in range(len(classes))]
        bars = [
            Bar(
                classes[i],
                [(self.objects[i, size], _COLOURS[size]) for size in SIZES],
                f'{totals[i]} in {self.images_with[i]} images',
                css_colour(palette[i]),
            )
            for i in sorted(range(len(classes)), key=lambda i: -totals[i])
        ]
        by_size = {size: sum(self.objects[i, size] for i in range(len(classes))) for size in SIZES}
        limits = {'small': 'box below 32² px', 'medium': 'below 96² px', 'large': 'others'}
        sizes = [
            Bar(f'{size} ({limits[size]})', [(count, _COLOURS[size])], str(count))
            for size, count in by_size.items()
        ]
        return [
            bar_chart('objects of each class', bars, list(_COLOURS.items())),
            bar_chart('objects by size', sizes),
            histogram('boxes per image', self.per_image, 'boxes', 'images'),
            size_chart('image sizes', self.sizes),
        ]

    def summary(self) -> str:
        objects = sum(self.objects.values())
        ignored = f', {self.ignored} ignored objects such as groups' if self.ignored else ''
        empty = f', {self.per_image[0]} images without objects' if self.per_image[0] else ''
        return f'{self.images} images, {objects} objects{ignored}{empty}'


@dataclass
class PixelCounts:
    """Pixels of data sets of MMSegmentation's kind.

    Attributes:
        images: label maps that were read.
        faults: what is wrong with files, a sentence each.
        statistics: pixels and label maps per class.
        per_image: number of classes -> label maps that have this number.
        sizes: (width, height) in pixels -> label maps.
    """

    images: int = 0
    faults: list[str] = field(default_factory=list)
    statistics: LabelStatistics = field(default_factory=LabelStatistics)
    per_image: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)

    def add(self, maps: LabelMaps) -> None:
        """Read and count all label maps of a data set."""
        self.faults += [f'{fault.text}.' for fault in maps.missing]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoding frees the GIL
            for info in maps.scan(pool):
                self.faults += [f'{fault.text}.' for fault in info.faults]
                if info.counts is None:
                    continue
                self.images += 1
                self.statistics.add(info.counts, maps.table, '')
                present = set(maps.table[np.flatnonzero(info.counts)].tolist()) - {255, -1}
                self.per_image[len(present)] += 1
                if info.size:
                    self.sizes[tuple(info.size)] += 1

    def charts(self, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> list[str]:
        """HTML of the charts; the most frequent class first."""
        pixels, maps = self.statistics.pixels, self.statistics.maps
        labelled, order = max(1, int(pixels[:255].sum())), range(len(classes))
        shares = [100 * int(pixels[i]) / labelled for i in order]
        colours = [css_colour(colour) for colour in palette]
        return [
            bar_chart(
                'share of the labelled pixels',
                [
                    Bar(classes[i], [(shares[i], colours[i])], f'{shares[i]:.4g} %', colours[i])
                    for i in sorted(order, key=lambda i: -shares[i])
                ],
            ),
            bar_chart(
                'images with each class',
                [
                    Bar(classes[i], [(int(maps[i]), colours[i])], str(int(maps[i])), colours[i])
                    for i in sorted(order, key=lambda i: -maps[i])
                ],
            ),
            histogram('classes per image', self.per_image, 'classes', 'images'),
            size_chart('image sizes', self.sizes),
        ]

    def summary(self) -> str:
        total = max(1, self.statistics.total)
        ignored = 100 * int(self.statistics.pixels[255]) / total
        return f'{self.images} images with label maps, {ignored:.4g} % of their pixels are ignored'


def _header_size(path: str | None) -> tuple[int, int] | None:
    """Width and height in the header of an image; None if it cannot be read."""
    try:
        with pillow_open(path) as image:
            return image.size
    except (*PILLOW_ERRORS, AttributeError, TypeError):
        return None
