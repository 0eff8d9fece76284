"""The largest number of pixels that an image may declare, checked before anything is decoded."""

import os
import re
from collections.abc import Iterable
from math import prod

from PIL import Image

from mmattn.errors import DataError

MAX_MEGAPIXELS = 100  # default of --max-megapixels
MEGAPIXELS_VARIABLE = 'MMATTN_MAX_MEGAPIXELS'  # hands the limit on to worker processes
_OPENCV_MEGAPIXELS = 2**30 // 10**6  # OpenCV's own limit


def max_megapixels() -> float:
    """The largest number of megapixels that an image may have; also sets Pillow's own limit."""
    limit = float(os.environ.get(MEGAPIXELS_VARIABLE) or MAX_MEGAPIXELS)
    Image.MAX_IMAGE_PIXELS = int(max(limit, MAX_MEGAPIXELS) * 1e6)
    return limit


def check_pixel_count(size: tuple[int, int]) -> None:
    """Refuse a declared width and height before anything is decoded.

    Raises:
        Image.DecompressionBombError: there are more than `max_megapixels`; in Pillow's words.
    """
    if prod(size) > max_megapixels() * 1e6:
        raise Image.DecompressionBombError(f'Image size ({prod(size)} pixels) exceeds the limit')


def check_megapixels(what: str, pixels: float) -> None:
    """Refuse a declared number of pixels before anything is decoded.

    Args:
        what: beginning of the message, such as 'image PATH declares'.
        pixels: declared number.

    Raises:
        DataError: there are more than `max_megapixels`.
    """
    if pixels > max_megapixels() * 1e6:
        megapixels = _to_megapixels(int(pixels))
        text = f'{what} {describe_megapixels(megapixels)}'
        raise DataError(f'{text}. {remedy_for_large([megapixels])}')


def error_megapixels(error: Image.DecompressionBombError) -> int:
    """Megapixels that an image declares, from Pillow's error; 0 if it does not have them."""
    pixels = re.match(r'Image size \((\d+) pixels\)', str(error))
    return _to_megapixels(int(pixels[1])) if pixels else 0


def _to_megapixels(pixels: int) -> int:
    return -(-pixels // 10**6)


def describe_megapixels(megapixels: int) -> str:
    """The size of an image that is too large, and the limit."""
    return f'more than {max_megapixels():g} megapixels: {megapixels or "unknown"}'


def remedy_for_large(megapixels: Iterable[int]) -> str:
    """What to do about images that are too large."""
    needed = max(megapixels, default=0)
    if needed > _OPENCV_MEGAPIXELS:
        return f'OpenCV decodes no more than {_OPENCV_MEGAPIXELS} megapixels: cut it into tiles.'
    return f'If it is meant to be that large, pass --max-megapixels {needed}.'
