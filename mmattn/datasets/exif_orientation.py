"""Whether label maps follow the EXIF orientation of their pictures, where sizes cannot tell.

A picture that is turned by 180 degrees or mirrored keeps its size. Labels change where the picture
does: the borders in the label map lie on steeper places of the picture in the right orientation.
"""

import contextlib

import numpy as np
from PIL import Image, ImageOps

from .image_io import BROKEN, ORIENTATION

_SIDE = 512  # px, to which larger pictures are reduced
_MOST = 64  # pictures that are looked at
_CLEAR = 0.1  # least mean of the logarithm of the ratios that says something


def follow(pictures: list[tuple[str, np.ndarray]]) -> bool | None:
    """Whether label maps lie on the pictures as EXIF turns them; None if that is not clear.

    Args:
        pictures: path of a picture with an orientation, and its label map as training reads it.
    """
    ratios = []
    for path, labels in pictures[:_MOST]:
        with contextlib.suppress(*BROKEN):  # a damaged picture says nothing
            ratios.append(_ratio(path, labels))
    ratios = [ratio for ratio in ratios if ratio]
    if not ratios:
        return None
    mean = float(np.mean(ratios))
    agree = np.mean(np.sign(ratios) == np.sign(mean))
    if abs(mean) < _CLEAR or agree < 0.75:
        return None
    return mean > 0


def _ratio(path: str, labels: np.ndarray) -> float:
    """Logarithm of how much steeper the turned picture is at the borders than the stored one."""
    borders = np.zeros(labels.shape, bool)
    borders[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    borders[1:] |= labels[1:] != labels[:-1]
    with Image.open(path) as opened:
        orientation = opened.getexif().get(ORIENTATION, 1)
        grey = opened.convert('L')
        grey.thumbnail((_SIDE, _SIDE))
    grey.getexif()[ORIENTATION] = orientation
    values = [
        float(_steepness(picture)[_reduced(borders, picture.size)].mean() or 0)
        for picture in (ImageOps.exif_transpose(grey), grey)
        if borders.any()
    ]
    return float(np.log(values[0] / values[1])) if values and min(values) > 0 else 0.0


def _steepness(picture: Image.Image) -> np.ndarray:
    """(H, W) size of the gradient."""
    down, right = np.gradient(np.asarray(picture, np.float32))
    return np.hypot(down, right)


def _reduced(borders: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The same borders at another width and height, none lost."""
    rows, columns = np.nonzero(borders)
    made = np.zeros(size[::-1], bool)
    made[rows * size[1] // borders.shape[0], columns * size[0] // borders.shape[1]] = True
    return made
