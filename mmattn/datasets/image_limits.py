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
        Image.DecompressionBombError: there are more than `max_megapixels`.
    """
    limit = max_megapixels()
    if prod(size) > limit * 1e6:
        raise Image.DecompressionBombError(_describe_size(prod(size), limit))


def check_megapixels(what: str, pixels: float) -> None:
    """Refuse a declared number of pixels before anything is decoded.

    Args:
        what: beginning of the message, such as 'image PATH declares'.
        pixels: declared number.

    Raises:
        DataError: there are more than `max_megapixels`.
    """
    limit = max_megapixels()
    if pixels > limit * 1e6:
        text = f'{what} {_describe_size(int(pixels), limit)}'
        raise DataError(f'{text}. {remedy_for_large([text])}')


def describe_size_error(error: Image.DecompressionBombError) -> str:
    """The size and the limit, from our error or from Pillow's, which has another limit."""
    pixels = re.match(r'Image size \((\d+) pixels\)', str(error))
    return _describe_size(int(pixels[1]), max_megapixels()) if pixels else str(error)


def _describe_size(pixels: int, limit: float) -> str:
    return f'more than {limit:g} megapixels: {-(-pixels // 10**6)}'


def remedy_for_large(texts: Iterable[str]) -> str:
    """What to do about images that are too large, from the messages about them."""
    needed = max(
        (int(n) for text in texts for n in re.findall(r'megapixels: (\d+)', text)), default=0
    )
    if needed > _OPENCV_MEGAPIXELS:
        return f'OpenCV decodes no more than {_OPENCV_MEGAPIXELS} megapixels: cut it into tiles.'
    return f'If it is meant to be that large, pass --max-megapixels {needed}.'
