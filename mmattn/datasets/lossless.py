"""Lossless formats of an image or a label map that OpenCV, which training reads with, decodes.

Sources: W3C, Portable Network Graphics (PNG) Specification, chapters 5, 9 and 10; RFC 1950.
"""

import struct
import zlib

import cv2
import numpy as np

FORMATS = ('bmp', 'webp', 'png')
_LOSSLESS_WEBP = 101  # OpenCV's quality above 100
_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'


def encode(image: np.ndarray, kind: str) -> bytes:
    """An image (H, W, 3) uint8 BGR, or a label map (H, W) uint8, as a file of a lossless format.

    Args:
        image: the pixels.
        kind: 'bmp', 'png', whose rows are not filtered, and stored in an image as they are, or
            'webp', which is for images alone.

    Raises:
        ValueError: the format cannot hold an image of this size, or is unknown.
    """
    if kind == 'png':
        return encode_png(image, level=0 if image.ndim == 3 else 1)
    options = dict(bmp=[], webp=[cv2.IMWRITE_WEBP_QUALITY, _LOSSLESS_WEBP])
    if kind not in options:
        raise ValueError(f'no format {kind!r}: allowed are {", ".join(FORMATS)}')
    try:
        done, data = cv2.imencode(f'.{kind}', image, options[kind])
    except cv2.error as error:
        raise ValueError(f'{kind} cannot hold {image.shape}: {error}') from error
    if not done:
        raise ValueError(f'{kind} cannot hold {image.shape}')
    return data.tobytes()


def encode_png(image: np.ndarray, level: int) -> bytes:
    """A PNG whose rows are not filtered, so that decoding is no more than inflating.

    Args:
        image: (H, W, 3) uint8 BGR, or (H, W) uint8.
        level: of zlib, 0 to 9; 0 stores the rows as they are.
    """
    height, width = image.shape[:2]
    rows = image[..., ::-1] if image.ndim == 3 else image
    lines = np.zeros((height, 1 + rows[0].size), np.uint8)  # each starts with 0: no filter
    lines[:, 1:] = rows.reshape(height, -1)
    colour = 2 if image.ndim == 3 else 0
    header = struct.pack('>IIBBBBB', width, height, 8, colour, 0, 0, 0)
    content = zlib.compress(lines.tobytes(), level)
    chunks = _chunk(b'IHDR', header) + _chunk(b'IDAT', content) + _chunk(b'IEND', b'')
    return _PNG_SIGNATURE + chunks


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', checksum)


def decode(data: np.ndarray, is_label: bool) -> np.ndarray | None:
    """The pixels of a file that `encode` made.

    Args:
        data: (bytes,) uint8, the content of the file.
        is_label: whether it holds a label map.

    Returns:
        (H, W, 3) uint8 BGR, or (H, W) uint8; None if it is damaged.
    """
    try:
        return cv2.imdecode(data, cv2.IMREAD_UNCHANGED if is_label else cv2.IMREAD_COLOR)
    except cv2.error:  # an empty file, a size that no image has
        return None
