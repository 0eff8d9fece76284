"""Whether label maps follow the EXIF orientation of their images, where sizes do not show it.

An image that is rotated by 180 degrees or mirrored keeps its size. Label borders lie on image
edges: in the right orientation the gradients of the image are steeper at the borders.
"""

import contextlib

import numpy as np
from PIL import Image, ImageOps

from .image_io import EXIF_ORIENTATION, PILLOW_ERRORS

_MAX_SIDE = 512  # px; larger images are reduced
_MIN_LOG_RATIO = 0.1  # mean over the images below which there is no answer
_MIN_AGREEMENT = 0.75  # share of the images that must agree with the mean


def labels_follow_exif(labelled: list[tuple[str, np.ndarray]]) -> bool | None:
    """Whether label maps are drawn on the images as EXIF rotates them; None if it is unclear.

    Args:
        labelled: path of an image with an orientation, and its label map (H, W) as training
            reads it.
    """
    ratios = []
    for path, labels in labelled:
        with contextlib.suppress(*PILLOW_ERRORS):  # a damaged image does not count
            ratios.append(_log_ratio(path, labels))
    ratios = [ratio for ratio in ratios if ratio]
    if not ratios:
        return None
    mean = float(np.mean(ratios))
    agreement = np.mean(np.sign(ratios) == np.sign(mean))
    if abs(mean) < _MIN_LOG_RATIO or agreement < _MIN_AGREEMENT:
        return None
    return mean > 0


def _log_ratio(path: str, labels: np.ndarray) -> float:
    """Log of the mean gradient at label borders, rotated image over stored image; 0 if unknown."""
    borders = np.zeros(labels.shape, bool)
    borders[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    borders[1:] |= labels[1:] != labels[:-1]
    with Image.open(path) as opened:
        orientation = opened.getexif().get(EXIF_ORIENTATION, 1)
        grey = opened.convert('L')
        grey.thumbnail((_MAX_SIDE, _MAX_SIDE))
    grey.getexif()[EXIF_ORIENTATION] = orientation
    values = [
        float(_gradient(image)[_resize(borders, image.size)].mean() or 0)
        for image in (ImageOps.exif_transpose(grey), grey)
        if borders.any()
    ]
    return float(np.log(values[0] / values[1])) if values and min(values) > 0 else 0.0


def _gradient(image: Image.Image) -> np.ndarray:
    """(H, W) magnitude of the gradient."""
    down, right = np.gradient(np.asarray(image, np.float32))
    return np.hypot(down, right)


def _resize(borders: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Borders (H, W) at another width and height, without losing one."""
    rows, columns = np.nonzero(borders)
    resized = np.zeros(size[::-1], bool)
    resized[rows * size[1] // borders.shape[0], columns * size[0] // borders.shape[1]] = True
    return resized
