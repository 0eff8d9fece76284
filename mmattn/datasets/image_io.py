"""Inspecting one image or label map: is it complete, how large is it, which labels does it hold.

Imports nothing heavy, since `audit` runs it in processes of a pool.
"""

import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from mmattn.errors import DataError

from .image_limits import (
    check_pixel_count,
    describe_megapixels,
    error_megapixels,
    max_megapixels,
    remedy_for_large,
)

# Last bytes of a complete file, by Pillow's name of the format.
END_MARKERS = {'JPEG': b'\xff\xd9', 'PNG': b'IEND\xaeB`\x82'}
EXIF_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap width and height
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)
_FLAGS = {  # OpenCV's, by mmcv's name
    'color': cv2.IMREAD_COLOR,
    'grayscale': cv2.IMREAD_GRAYSCALE,
    'unchanged': cv2.IMREAD_UNCHANGED,
    'color_ignore_orientation': cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_COLOR,
    'grayscale_ignore_orientation': cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_GRAYSCALE,
}
_DEEP_MODES = {'I;16': '16 bits', 'I;16B': '16 bits', 'I': '32 bits', 'F': '32 bits'}

_decoder_stderr = None  # in a process of a pool: the file that decoders print to


class Fault(NamedTuple):
    """Something wrong with a file.

    Attributes:
        kind: selects the remedy; 'warning' where the file can still be used.
        text: a sentence without its full stop.
        megapixels: declared size of an image that is too large.
    """

    kind: str
    text: str
    megapixels: int = 0


class Decoding(NamedTuple):
    """How a stock step decodes a file: the arguments of `mmcv.imfrombytes`."""

    backend: str = 'cv2'  # or 'pillow'
    flag: str = 'color'
    squeezes: bool = False  # whether a side of one pixel is dropped

    @property
    def applies_exif(self) -> bool:
        """Whether the image is rotated by its EXIF orientation."""
        return self.flag in ('color', 'grayscale')


DEFAULT_IMAGE_DECODING = Decoding()  # LoadImageFromFile's
DEFAULT_LABEL_DECODING = Decoding('pillow', 'unchanged')  # LoadAnnotations' of MMSegmentation


class ImageInfo(NamedTuple):
    """What an inspection found in an image and its label map.

    Attributes:
        faults: what is wrong with them.
        counts: (256,) pixels per label; None without a readable label map.
        orientation: EXIF orientation, where sizes do not show whether the label map follows it.
        size: width and height of the label map in pixels; None without a readable one.
    """

    faults: list[Fault]
    counts: np.ndarray | None
    orientation: int = 1
    size: tuple[int, int] | None = None


class ImageHeader(NamedTuple):
    """Header of an image.

    Attributes:
        size: width and height as stored.
        orientation: EXIF orientation, 1 by default.
        mode: Pillow's mode, such as 'RGB'.
    """

    size: tuple[int, int]
    orientation: int
    mode: str


class UnusableImage(Exception):
    """An image whose inspection ends here; `fault` is the reason."""

    def __init__(self, kind: str, text: str, megapixels: int = 0) -> None:
        super().__init__(kind, text, megapixels)
        self.fault = Fault(kind, text, megapixels)


def large_fault(what: str, error: Image.DecompressionBombError) -> Fault:
    """The fault of an image that declares too many pixels; `what` names it."""
    megapixels = error_megapixels(error)
    return Fault('large', f'{what} declares {describe_megapixels(megapixels)}', megapixels)


def remedy_for_orientation(decoding: Decoding) -> str:
    """What to do if this decoding rotates images wrongly."""
    flag = 'grayscale' if decoding.flag.startswith('gray') else 'color'
    flag += '_ignore_orientation' if decoding.applies_exif else ''
    return f'Set color_type={flag!r} in LoadImageFromFile of every pipeline.'


def capture_decoder_messages() -> None:
    """Redirect stderr of a process of a pool: decoders print to it without naming the file."""
    global _decoder_stderr
    _decoder_stderr = tempfile.TemporaryFile()  # noqa: SIM115, open until the process ends
    os.dup2(_decoder_stderr.fileno(), 2)
    cv2.setNumThreads(1)


def inspect_pair(
    pair: tuple[str, str],
    table: np.ndarray,
    decode: bool,
    image: Decoding = DEFAULT_IMAGE_DECODING,
    label: Decoding = DEFAULT_LABEL_DECODING,
) -> ImageInfo:
    """Inspect an image and its label map.

    Args:
        pair: paths of both.
        table: (256,) class per label in training; -1 where the label is refused.
        decode: decode the image, too; otherwise only its header and end are read.
        image: how training decodes images.
        label: how training decodes label maps.
    """
    faults, header, size, counts = [], None, None, None
    try:
        header, warnings = _inspect_image(pair[0], decode, image)
        faults += warnings
    except UnusableImage as unusable:
        faults.append(unusable.fault)
    try:
        size, counts = inspect_label_map(pair[1], label)
    except UnusableImage as unusable:
        faults.append(unusable.fault)
    orientation = 1
    if header and size:
        unusable = _compare_sizes(pair, header, size, image)
        if unusable:
            faults.append(unusable)
        elif header.orientation > 4 and header.size[0] != header.size[1]:
            pass  # the sizes agree, so the label map is rotated as training rotates the image
        else:
            orientation = header.orientation
    if counts is not None:
        faults += wrong_labels(counts, table, pair[1])
    return ImageInfo(faults, counts, orientation, size)


def _compare_sizes(
    pair: tuple[str, str], header: ImageHeader, size: tuple[int, int], image: Decoding
) -> Fault | None:
    """The fault of a label map whose size differs from its image as training reads it."""
    stored, turned = header.size, header.size
    if header.orientation > 4:
        turned = stored[::-1]
    read, other = (turned, stored) if image.applies_exif else (stored, turned)
    if size == read:
        return None
    sizes = ['x'.join(map(str, sides)) for sides in (size, read)]
    text = f'label map {pair[1]} is {sizes[0]}, its image {sizes[1]}'
    if size == other:
        after = (
            ' after EXIF rotation' if image.applies_exif else ' as stored, without EXIF rotation'
        )
        return Fault('exif', f'{text}{after}')
    return Fault('size', text)


def wrong_labels(counts: np.ndarray, table: np.ndarray, path: str) -> list[Fault]:
    """A fault if some labels of a map are no classes; `counts` are pixels per label, (256,)."""
    wrong = np.flatnonzero((counts > 0) & (table < 0)).tolist()
    if not wrong:
        return []
    counted = ', '.join(f'{value} ({counts[value]} px)' for value in wrong)
    what, are = ('labels', 'are no classes') if len(wrong) > 1 else ('label', 'is no class')
    text = f'{what} {counted} in {path} {are} (allowed {_describe_ranges(table >= 0)})'
    return [Fault('labels', text)]


def pillow_open(path: str | Path) -> Image.Image:
    """Pillow's `Image.open`, which decodes nothing yet.

    Raises:
        DataError: the image declares more than `max_megapixels`.
        OSError, SyntaxError, ValueError: Pillow's.
    """
    try:
        max_megapixels()  # sets Pillow's limit
        image = Image.open(path)
        try:
            check_pixel_count(image.size)
        except Image.DecompressionBombError:
            image.close()
            raise
    except Image.DecompressionBombError as error:
        fault = large_fault(f'image {path}', error)
        raise DataError(f'{fault.text}. {remedy_for_large([fault.megapixels])}') from error
    return image


@contextmanager
def open_image(path: str | Path, what: str = 'image', remedy: str = '') -> Iterator[Image.Image]:
    """Open an image with Pillow, and report it if it cannot be read, here or in the body.

    Args:
        path: the file.
        what: noun for the message, such as 'label map'.
        remedy: sentence that ends the message.

    Raises:
        DataError: the file is missing, damaged, no image, or declares more than `max_megapixels`.
        PermissionError: the file must not be read.
    """
    try:
        with pillow_open(path) as image:
            yield image
    except PermissionError:
        raise
    except PILLOW_ERRORS as error:
        reason = f'{what} {path} cannot be read: it is damaged or no image.'
        raise DataError(f'{reason} {remedy}'.rstrip()) from error


def inspect_image(path: str, decoding: Decoding = DEFAULT_IMAGE_DECODING) -> list[Fault]:
    """Decode an image; returns what is wrong with it."""
    try:
        return _inspect_image(path, True, decoding)[1]
    except UnusableImage as unusable:
        return [unusable.fault]


def read_image(path: str | Path) -> np.ndarray:
    """An image as training reads it, (H, W, 3) uint8 BGR; its header is checked first.

    Raises:
        DataError: it does not exist, is damaged, or declares more than `max_megapixels`.
    """
    try:
        _inspect_image(str(path), False, DEFAULT_IMAGE_DECODING)
        image = cv2.imread(str(path))
        if image is None:
            raise UnusableImage('file', f'image {path} cannot be decoded')
    except UnusableImage as unusable:
        kind, text, megapixels = unusable.fault
        more = f' {remedy_for_large([megapixels])}' if kind == 'large' else ''
        raise DataError(f'{text}.{more}') from unusable
    return image


def header_fault(path: str) -> Fault | None:
    """What is wrong with the header or the end of an image; None if Pillow cannot read it."""
    try:
        _inspect_image(path, False, DEFAULT_IMAGE_DECODING)
    except UnusableImage as unusable:
        return unusable.fault if unusable.fault.kind != 'unknown' else None
    return None


def image_header(path: str | Path) -> ImageHeader:
    """The header of an image that is not cut short, without decoding it.

    Raises:
        UnusableImage: its fault says why.
    """
    return _inspect_image(str(path), False, DEFAULT_IMAGE_DECODING)[0]


def _inspect_image(path: str, decode: bool, decoding: Decoding) -> tuple[ImageHeader, list[Fault]]:
    """Header of an image, and warnings about its content if that is decoded."""
    source = path
    try:
        max_megapixels()  # sets Pillow's limit
        if decode:
            data = Path(path).read_bytes()
            source = BytesIO(data)
        with Image.open(source) as opened:
            size, end, orientation = opened.size, END_MARKERS.get(opened.format), 1
            mode = opened.mode
            check_pixel_count(size)
            if 'exif' in opened.info:
                orientation = opened.getexif().get(EXIF_ORIENTATION, 1)
                orientation = orientation if orientation in range(1, 9) else 1
        if end and end not in (data[-64:] if decode else read_tail(path)):
            raise UnusableImage('cut', f'image {path} is cut short: its end is missing')
    except FileNotFoundError as error:
        raise UnusableImage('missing', f'image {path} does not exist') from error
    except IsADirectoryError as error:
        raise UnusableImage(
            'missing', f'image {path} is a folder: name the images in it'
        ) from error
    except Image.DecompressionBombError as error:
        raise UnusableImage(*large_fault(f'image {path}', error)) from error
    except PILLOW_ERRORS as error:
        raise UnusableImage(
            'unknown', f'image {path} cannot be read: it is damaged or no image'
        ) from error
    header = ImageHeader(size, orientation, mode)
    return header, _decode(path, data, decoding) if decode else []


def _decode(path: str, data: bytes, decoding: Decoding) -> list[Fault]:
    """Doubts about the content of an image; raises UnusableImage if it is damaged."""
    if decoding.backend == 'pillow':
        try:
            with Image.open(BytesIO(data)) as opened:
                opened.load()
        except PILLOW_ERRORS as error:
            raise UnusableImage('file', f'image {path} is damaged: {error}') from error
        return []
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS[decoding.flag])
    message = _decoder_message()
    if decoded is None or (message and 'extraneous' not in message):
        reason = f': {message}' if message else ''
        raise UnusableImage('file', f'image {path} is damaged{reason}')
    return [Fault('warning', f'image {path} may be damaged: {message}')] if message else []


def inspect_label_map(path: str, decoding: Decoding) -> tuple[tuple[int, int], np.ndarray]:
    """Width and height of a label map, and its pixels per label, (256,)."""
    try:
        max_megapixels()  # sets Pillow's limit
        data = Path(path).read_bytes()
        with Image.open(BytesIO(data)) as opened:
            mode, size, kind = opened.mode, opened.size, opened.format
            check_pixel_count(size)
            if kind == 'PNG':
                opened.verify()  # Pillow decodes without checking the checksums
        if mode == 'P' and decoding.backend == 'cv2':
            raise UnusableImage(
                'palette',
                f"label map {path} has a palette, which imdecode_backend='cv2' reads as colours",
            )
        if kind == 'JPEG':
            raise UnusableImage(
                'format', f'label map {path} is a JPEG, whose compression changes ids'
            )
        if mode not in ('L', 'P', '1', *_DEEP_MODES):
            raise UnusableImage(
                'format', f'label map {path} has mode {mode}, not 8-bit single-channel: colours'
            )
        if decoding.squeezes and min(size) == 1:
            sides = 'x'.join(map(str, size))
            raise UnusableImage(
                'thin',
                f'label map {path} is {sides}, and LoadAnnotations drops a side of one pixel',
            )
        with Image.open(BytesIO(data)) as opened:
            if mode in _DEEP_MODES:
                return size, _count_deep_labels(path, mode, np.array(opened))
            counts = np.array(opened.histogram(), np.int64)
    except FileNotFoundError as error:
        raise UnusableImage('missing', f'label map {path} does not exist') from error
    except Image.DecompressionBombError as error:
        raise UnusableImage(*large_fault(f'label map {path}', error)) from error
    except PILLOW_ERRORS as error:
        raise UnusableImage(
            'file', f'label map {path} cannot be read: it is damaged or no image'
        ) from error
    if mode == '1' and decoding.backend == 'pillow':
        counts[[1, 255]] = counts[[255, 1]]  # its histogram has white as 255, its arrays as 1
    return size, counts


def _count_deep_labels(path: str, mode: str, values: np.ndarray) -> np.ndarray:
    """Pixels per label, (256,), of a map of more than 8 bits; training takes the lower 8."""
    valid = _are_labels(values) | (values == 65535)  # which becomes 255
    if not valid.all():
        raise UnusableImage(
            'format',
            f'label map {path} has mode {mode}, not 8-bit single-channel: {_DEEP_MODES[mode]} a '
            f'pixel, as instance ids have, e.g. {values[~valid][0]}',
        )
    return np.bincount(values.ravel().astype(np.int64) % 256, minlength=256)


def count_labels(values: np.ndarray, path: str) -> tuple[np.ndarray, list[Fault]]:
    """Pixels per label, (256,), of a label map from the steps of a config, and its faults."""
    valid, faults = _are_labels(values), []
    if not valid.all():
        text = f'the steps of the config give {values[~valid][0]} as a label of {path}'
        faults.append(Fault('labels', f'{text} (allowed are whole numbers 0..255)'))
    return np.bincount(values[valid].astype(np.int64), minlength=256), faults


def _are_labels(values: np.ndarray) -> np.ndarray:
    """Which values are whole numbers from 0 to 255."""
    return (values >= 0) & (values < 256) & (values == np.floor(values))


def _decoder_message() -> str:
    """The message that decoders printed since the last call; they print it and go on."""
    if _decoder_stderr is None:
        return ''
    _decoder_stderr.seek(0)
    lines = _decoder_stderr.read().decode(errors='replace').splitlines()
    _decoder_stderr.seek(0)
    _decoder_stderr.truncate()
    markers = ('Corrupt JPEG', 'Premature end', 'libpng error')
    return next((line.strip() for line in lines if line.startswith(markers)), '')


def read_tail(path: str) -> bytes:
    """The last bytes of a file, with its end marker."""
    with open(path, 'rb') as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 64))
        return file.read()


def _describe_ranges(allowed: np.ndarray) -> str:
    """Allowed labels, (256,) bools, in words: '0..18 and 255'."""
    edges = np.flatnonzero(np.diff(allowed, prepend=False, append=False))
    parts = [str(a) if b - a == 1 else f'{a}..{b - 1}' for a, b in edges.reshape(-1, 2)]
    return ', '.join(parts[:-1]) + ' and ' + parts[-1] if parts[1:] else ''.join(parts)
