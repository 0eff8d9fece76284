"""Looking into one image or label map: is it whole, how large is it, which labels does it hold.

Loads nothing heavy, since `survey` runs it in processes of their own.
"""

import os
import struct
import tempfile
from io import BytesIO
from math import prod
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from mmattn.errors import DataError

# The last bytes of a file that was written to its end, by Pillow's name of the format.
END = {'JPEG': b'\xff\xd9', 'PNG': b'IEND\xaeB`\x82'}
MPX = 100  # pixels of an image, in millions
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap width and height
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what Pillow raises
_DEPTH = {'I;16': '16 bits', 'I;16B': '16 bits', 'I': '32 bits', 'F': '32 bits'}

_ear = None  # in a process of its own: what the decoders print


class Fault(NamedTuple):
    """Something wrong with a file."""

    kind: str  # 'file', 'size', 'format' or 'labels'; 'doubt' where it can still be used
    text: str  # a sentence without its full stop


class Looked(NamedTuple):
    """What was found in an image and its label map."""

    faults: list[Fault]
    pixels: np.ndarray | None  # (256,) how many of each label; None without a readable label map


class _Unfit(Exception):
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.fault = Fault(kind, text)


def listen() -> None:
    """In a new process: catch what the decoders print, which names no file."""
    global _ear
    _ear = tempfile.TemporaryFile()  # noqa: SIM115, open as long as the process
    os.dup2(_ear.fileno(), 2)
    cv2.setNumThreads(1)


def look(pair: tuple[str, str], table: np.ndarray, whole: bool) -> Looked:
    """Look at an image and its label map.

    Args:
        pair: their paths.
        table: (256,) what becomes of a label; -1 refuses it.
        whole: decode the image, too; otherwise its beginning and end are looked at.
    """
    faults, sizes, pixels = [], {}, None
    image, label = pair
    try:
        sizes['image'], doubts = image_size(image, whole)
        faults += doubts
    except _Unfit as unfit:
        faults.append(unfit.fault)
    try:
        sizes['label'], pixels = _labels(label)
    except _Unfit as unfit:
        faults.append(unfit.fault)
    if len(sizes) == 2 and sizes['image'] != sizes['label']:
        own, other = ('x'.join(map(str, sizes[kind])) for kind in ('label', 'image'))
        faults.append(Fault('size', f'label map {label} is {own}, its image {other}'))
    if pixels is not None:
        wrong = np.flatnonzero((pixels > 0) & (table < 0)).tolist()
        if wrong:
            counted = ', '.join(f'{value} ({pixels[value]} px)' for value in wrong)
            what, are = ('labels', 'are no classes') if len(wrong) > 1 else ('label', 'is no class')
            text = f'{what} {counted} in {label} {are} (allowed {_ranges(table >= 0)})'
            faults.append(Fault('labels', text))
    return Looked(faults, pixels)


def open_image(path: str | Path) -> Image.Image:
    """Pillow's `Image.open`, which decodes nothing yet.

    Raises:
        DataError: it declares more than 100 megapixels, of which Pillow's own limit is the double.
        OSError, SyntaxError, ValueError: those of Pillow.
    """
    try:
        image = Image.open(path)
        if prod(image.size) > MPX * 1e6:
            image.close()
            raise Image.DecompressionBombError
    except Image.DecompressionBombError as error:
        raise DataError(f'image {path} declares more than {MPX} megapixels.') from error
    return image


def look_at_image(path: str) -> list[Fault]:
    """Decode an image."""
    try:
        return image_size(path, whole=True)[1]
    except _Unfit as unfit:
        return [unfit.fault]


def read_image(path: str | Path) -> np.ndarray:
    """An image as training reads it, (H, W, 3) uint8 BGR; its header is looked at first.

    Raises:
        DataError: it does not exist, is damaged, or declares more than 100 megapixels.
    """
    try:
        image_size(str(path), whole=False)
        image = cv2.imread(str(path))
        if image is None:
            raise _Unfit('file', f'image {path} cannot be decoded')
    except _Unfit as unfit:
        raise DataError(f'{unfit.fault.text}.') from unfit
    return image


def image_size(path: str, whole: bool) -> tuple[tuple[int, int], list[Fault]]:
    """Width and height of an image as training reads it, after EXIF rotation; and doubts."""
    source = path
    try:
        if whole:
            data = Path(path).read_bytes()
            source = BytesIO(data)
        with Image.open(source) as opened:
            size, end = opened.size, END.get(opened.format)
            if prod(size) > MPX * 1e6:
                raise Image.DecompressionBombError
            if 'exif' in opened.info and opened.getexif().get(ORIENTATION) in range(5, 9):
                size = size[::-1]
        if end and end not in (data[-64:] if whole else tail(path)):
            raise _Unfit('file', f'image {path} is cut short: its end is missing')
    except FileNotFoundError as error:
        raise _Unfit('file', f'image {path} does not exist') from error
    except IsADirectoryError as error:
        raise _Unfit('file', f'image {path} is a folder: name the images in it') from error
    except Image.DecompressionBombError as error:
        raise _Unfit('file', f'image {path} declares more than {MPX} megapixels') from error
    except BROKEN as error:
        raise _Unfit('file', f'image {path} cannot be read: it is damaged or no image') from error
    if not whole:
        return size, []
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    said = _complaint()
    if decoded is None or (said and 'extraneous' not in said):
        why = f': {said}' if said else ''
        raise _Unfit('file', f'image {path} is damaged{why}')
    doubts = [Fault('doubt', f'image {path} may be damaged: {said}')] if said else []
    return decoded.shape[1::-1], doubts


def _labels(path: str) -> tuple[tuple[int, int], np.ndarray]:
    """Width and height of a label map, and how many pixels have each label, (256,)."""
    try:
        data = Path(path).read_bytes()
        with Image.open(BytesIO(data)) as opened:
            mode, size, kind = opened.mode, opened.size, opened.format
            if prod(size) > MPX * 1e6:
                raise Image.DecompressionBombError
            if kind == 'PNG':
                opened.verify()  # Pillow decodes without a look at the checksums
        if mode not in ('L', 'P', '1'):
            depth = _DEPTH.get(mode)
            looks = f'{depth} a pixel, as instance ids have' if depth else 'colours'
            raise _Unfit(
                'format', f'label map {path} has mode {mode}, not 8-bit single-channel: {looks}'
            )
        if kind == 'JPEG':
            raise _Unfit('format', f'label map {path} is a JPEG, whose compression changes ids')
        with Image.open(BytesIO(data)) as opened:
            pixels = np.array(opened.histogram(), np.int64)
    except FileNotFoundError as error:
        raise _Unfit('file', f'label map {path} does not exist') from error
    except Image.DecompressionBombError as error:
        raise _Unfit('file', f'label map {path} declares more than {MPX} megapixels') from error
    except BROKEN as error:
        raise _Unfit(
            'file', f'label map {path} cannot be read: it is damaged or no image'
        ) from error
    if mode == '1':  # Pillow counts white as 255, arrays have it as 1
        pixels[[1, 255]] = pixels[[255, 1]]
    return size, pixels


def _complaint() -> str:
    """What the JPEG decoder has printed since the last call; it prints and goes on."""
    if _ear is None:
        return ''
    _ear.seek(0)
    lines = _ear.read().decode(errors='replace').splitlines()
    _ear.seek(0)
    _ear.truncate()
    marks = ('Corrupt JPEG', 'Premature end', 'libpng error')
    return next((line.strip() for line in lines if line.startswith(marks)), '')


def tail(path: str) -> bytes:
    """The last bytes of a file, where its end mark stands."""
    with open(path, 'rb') as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 64))
        return file.read()


def _ranges(allowed: np.ndarray) -> str:
    """What is allowed, (256,) bools, in words: '0..18 and 255'."""
    edges = np.flatnonzero(np.diff(allowed, prepend=False, append=False))
    parts = [str(a) if b - a == 1 else f'{a}..{b - 1}' for a, b in edges.reshape(-1, 2)]
    return ', '.join(parts[:-1]) + ' and ' + parts[-1] if parts[1:] else ''.join(parts)
