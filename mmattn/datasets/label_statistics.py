"""Statistics of the labels in a data set, and class weights that follow from them.

Class weights: median frequency, Eigen and Fergus, Predicting depth, surface normals and semantic
    labels, ICCV 2015, arXiv 1411.4734; inverse log, Paszke et al., ENet, arXiv 1606.02147.
"""

from dataclasses import dataclass, field

import numpy as np


def _zeros() -> np.ndarray:
    return np.zeros(256, np.int64)


@dataclass
class LabelStatistics:
    """Pixels and label maps per class, the class being that of training, or 255.

    Attributes:
        total: pixels of all label maps.
        pixels: (256,) pixels per class.
        maps: (256,) label maps per class that hold it.
        pixels_of_maps: (256,) pixels of these label maps.
        ignored_maps: label maps in which every pixel is ignored.
    """

    total: int = 0
    pixels: np.ndarray = field(default_factory=_zeros)
    maps: np.ndarray = field(default_factory=_zeros)
    pixels_of_maps: np.ndarray = field(default_factory=_zeros)
    ignored_maps: list[str] = field(default_factory=list)

    def add(self, counts: np.ndarray, table: np.ndarray, name: str) -> None:
        """Count a label map.

        Args:
            counts: (256,) pixels per label.
            table: (256,) class per label; labels below 0 are left out.
            name: path of the label map.
        """
        pixels, size, known = _zeros(), int(counts.sum()), table >= 0
        np.add.at(pixels, table[known], counts[known])
        self.total += size
        self.pixels += pixels
        self.maps += pixels > 0
        self.pixels_of_maps += (pixels > 0) * size
        if pixels[255] == size:
            self.ignored_maps.append(name)

    def __add__(self, other: 'LabelStatistics') -> 'LabelStatistics':
        names = 'total', 'pixels', 'maps', 'pixels_of_maps', 'ignored_maps'
        return LabelStatistics(*(getattr(self, name) + getattr(other, name) for name in names))

    def class_weights(self, count: int) -> dict[str, list[float]]:
        """Weights of the first `count` classes by their source; 1 or 50.5 if a class never occurs.

        Median frequency: median(f) / f, f the share of a class in the images where it occurs.
        Inverse log: 1 / ln(1.02 + p), p the share of a class in all labelled pixels.
        """
        pixels, present = self.pixels[:count], self.pixels[:count] > 0
        shares = pixels[present] / self.pixels_of_maps[:count][present]
        balanced = np.ones(count)
        balanced[present] = np.median(shares) / shares if present.any() else 1
        inverse = 1 / np.log(1.02 + pixels / max(pixels.sum(), 1))
        return dict(median_frequency=balanced.tolist(), inverse_log=inverse.tolist())
