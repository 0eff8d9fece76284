"""Looking into one image or label map: is it whole, how large is it, which labels does it hold.

Loads nothing heavy, since `survey` runs it in processes of their own.
"""

import os
import re
import struct
import tempfile
from collections.abc import Iterable
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
MPX = 100  # megapixels that an image may have, unless a tool is called with --max-megapixels
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap width and height
_DECODABLE = 2**30 // 10**6  # megapixels, OpenCV's own limit
VARIABLE = 'MMATTN_MAX_MEGAPIXELS'  # hands the limit on to processes of a pool or a data loader
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what Pillow raises
_FLAGS = {  # of OpenCV, by mmcv's name
    'color': cv2.IMREAD_COLOR,
    'grayscale': cv2.IMREAD_GRAYSCALE,
    'unchanged': cv2.IMREAD_UNCHANGED,
    'color_ignore_orientation': cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_COLOR,
    'grayscale_ignore_orientation': cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_GRAYSCALE,
}
_DEPTH = {'I;16': '16 bits', 'I;16B': '16 bits', 'I': '32 bits', 'F': '32 bits'}

_ear = None  # in a process of its own: what the decoders print


class Fault(NamedTuple):
    """Something wrong with a file."""

    kind: str  # what the remedy is chosen by; 'doubt' where the file can still be used
    text: str  # a sentence without its full stop


class Decoding(NamedTuple):
    """How a stock step decodes a file: the arguments of `mmcv.imfrombytes`."""

    backend: str = 'cv2'  # or 'pillow'
    flag: str = 'color'
    squeezes: bool = False  # a side of one pixel is dropped

    @property
    def turns(self) -> bool:
        """Whether it follows the orientation that EXIF tells."""
        return self.flag in ('color', 'grayscale')


IMAGES = Decoding()  # of LoadImageFromFile by default
LABELS = Decoding('pillow', 'unchanged')  # of MMSegmentation's LoadAnnotations


class Looked(NamedTuple):
    """What was found in an image and its label map."""

    faults: list[Fault]
    pixels: np.ndarray | None  # (256,) how many of each label; None without a readable label map
    orientation: int = 1  # of EXIF, where sizes do not tell whether the label map follows it


class _Header(NamedTuple):
    """What an image says of itself."""

    size: tuple[int, int]  # width and height as stored
    orientation: int  # of EXIF, 1 if there is none


class Unfit(Exception):
    """A file of which nothing more can be said; `fault` says why."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.fault = Fault(kind, text)


def max_megapixels() -> float:
    """Megapixels that an image may have; Pillow's own limit follows."""
    limit = float(os.environ.get(VARIABLE) or MPX)
    Image.MAX_IMAGE_PIXELS = int(max(limit, MPX) * 1e6)
    return limit


def check_pixels(size: tuple[int, int]) -> None:
    """Refuse a declared width and height before anything is decoded.

    Raises:
        Image.DecompressionBombError: says how large it is.
    """
    limit = max_megapixels()
    if prod(size) > limit * 1e6:
        raise Image.DecompressionBombError(_too_many(prod(size), limit))


def check_declared(what: str, pixels: float) -> None:
    """Refuse what declares more pixels than `max_megapixels`.

    Raises:
        DataError: says so of `what`, such as 'image PATH declares', and what to do.
    """
    limit = max_megapixels()
    if pixels > limit * 1e6:
        text = f'{what} {_too_many(int(pixels), limit)}'
        raise DataError(f'{text}. {remedy_of_large([text])}')


def too_large(error: Image.DecompressionBombError) -> str:
    """What is wrong with an image of too many pixels; Pillow's own error knows no limit of ours."""
    pixels = re.match(r'Image size \((\d+) pixels\)', str(error))
    return _too_many(int(pixels[1]), max_megapixels()) if pixels else str(error)


def _too_many(pixels: int, limit: float) -> str:
    return f'more than {limit:g} megapixels: {-(-pixels // 10**6)}'


def remedy_of_large(texts: Iterable[str]) -> str:
    """What to do about images that are too large, from what was said of each."""
    need = max(
        (int(n) for text in texts for n in re.findall(r'megapixels: (\d+)', text)), default=0
    )
    if need > _DECODABLE:
        return f'OpenCV decodes no more than {_DECODABLE} megapixels: cut it into tiles.'
    return f'If it is meant to be that large, pass --max-megapixels {need}.'


def other_orientation(how: Decoding) -> str:
    """What to do if images are not in the position in which this reads them."""
    flag = 'grayscale' if how.flag.startswith('gray') else 'color'
    flag += '_ignore_orientation' if how.turns else ''
    return f'Set color_type={flag!r} in LoadImageFromFile of every pipeline.'


def listen() -> None:
    """In a new process: catch what the decoders print, which names no file."""
    global _ear
    _ear = tempfile.TemporaryFile()  # noqa: SIM115, open as long as the process
    os.dup2(_ear.fileno(), 2)
    cv2.setNumThreads(1)


def look(
    pair: tuple[str, str],
    table: np.ndarray,
    whole: bool,
    image: Decoding = IMAGES,
    label: Decoding = LABELS,
) -> Looked:
    """Look at an image and its label map.

    Args:
        pair: their paths.
        table: (256,) what becomes of a label; -1 refuses it.
        whole: decode the image, too; otherwise its beginning and end are looked at.
        image: how training decodes images.
        label: how it decodes label maps.
    """
    faults, header, size, pixels = [], None, None, None
    try:
        header, doubts = _image(pair[0], whole, image)
        faults += doubts
    except Unfit as unfit:
        faults.append(unfit.fault)
    try:
        size, pixels = read_labels(pair[1], label)
    except Unfit as unfit:
        faults.append(unfit.fault)
    orientation = 1
    if header and size:
        unfit = _compare(pair, header, size, image)
        if unfit:
            faults.append(unfit)
        elif header.orientation > 4 and header.size[0] != header.size[1]:
            pass  # the sizes agree, so the label map follows the turn as training does
        else:
            orientation = header.orientation
    if pixels is not None:
        faults += wrong_labels(pixels, table, pair[1])
    return Looked(faults, pixels, orientation)


def _compare(
    pair: tuple[str, str], header: _Header, size: tuple[int, int], image: Decoding
) -> Fault | None:
    """What the size of a label map says against its image as training reads it."""
    stored, turned = header.size, header.size
    if header.orientation > 4:
        turned = stored[::-1]
    read, other = (turned, stored) if image.turns else (stored, turned)
    if size == read:
        return None
    own, theirs = ('x'.join(map(str, s)) for s in (size, read))
    text = f'label map {pair[1]} is {own}, its image {theirs}'
    if size == other:
        after = ' after EXIF rotation' if image.turns else ' as stored, without EXIF rotation'
        return Fault('exif', f'{text}{after}')
    return Fault('size', text)


def wrong_labels(pixels: np.ndarray, table: np.ndarray, path: str) -> list[Fault]:
    """A fault if some of the labels, (256,) by count, are no classes."""
    wrong = np.flatnonzero((pixels > 0) & (table < 0)).tolist()
    if not wrong:
        return []
    counted = ', '.join(f'{value} ({pixels[value]} px)' for value in wrong)
    what, are = ('labels', 'are no classes') if len(wrong) > 1 else ('label', 'is no class')
    text = f'{what} {counted} in {path} {are} (allowed {_ranges(table >= 0)})'
    return [Fault('labels', text)]


def open_image(path: str | Path) -> Image.Image:
    """Pillow's `Image.open`, which decodes nothing yet.

    Raises:
        DataError: it declares more than `max_megapixels`.
        OSError, SyntaxError, ValueError: those of Pillow.
    """
    try:
        max_megapixels()  # sets Pillow's
        image = Image.open(path)
        try:
            check_pixels(image.size)
        except Image.DecompressionBombError:
            image.close()
            raise
    except Image.DecompressionBombError as error:
        text = too_large(error)
        raise DataError(f'image {path} declares {text}. {remedy_of_large([text])}') from error
    return image


def look_at_image(path: str, how: Decoding = IMAGES) -> list[Fault]:
    """Decode an image."""
    try:
        return _image(path, True, how)[1]
    except Unfit as unfit:
        return [unfit.fault]


def read_image(path: str | Path) -> np.ndarray:
    """An image as training reads it, (H, W, 3) uint8 BGR; its header is looked at first.

    Raises:
        DataError: it does not exist, is damaged, or declares more than `max_megapixels`.
    """
    try:
        image_size(str(path), whole=False)
        image = cv2.imread(str(path))
        if image is None:
            raise Unfit('file', f'image {path} cannot be decoded')
    except Unfit as unfit:
        kind, text = unfit.fault
        more = f' {remedy_of_large([text])}' if kind == 'large' else ''
        raise DataError(f'{text}.{more}') from unfit
    return image


def header_fault(path: str) -> Fault | None:
    """What the header and the end of an image say against it, if they can be read."""
    try:
        _image(path, False, IMAGES)
    except Unfit as unfit:
        return unfit.fault if unfit.fault.kind != 'unknown' else None
    return None


def image_size(path: str, whole: bool) -> tuple[tuple[int, int], list[Fault]]:
    """Width and height of an image after EXIF rotation, and doubts."""
    header, doubts = _image(path, whole, IMAGES)
    return header.size[::-1] if header.orientation > 4 else header.size, doubts


def _image(path: str, whole: bool, how: Decoding) -> tuple[_Header, list[Fault]]:
    """What an image says of itself, and doubts of its content if that is decoded."""
    source = path
    try:
        max_megapixels()  # sets Pillow's
        if whole:
            data = Path(path).read_bytes()
            source = BytesIO(data)
        with Image.open(source) as opened:
            size, end, orientation = opened.size, END.get(opened.format), 1
            check_pixels(size)
            if 'exif' in opened.info:
                orientation = opened.getexif().get(ORIENTATION, 1)
                orientation = orientation if orientation in range(1, 9) else 1
        if end and end not in (data[-64:] if whole else tail(path)):
            raise Unfit('cut', f'image {path} is cut short: its end is missing')
    except FileNotFoundError as error:
        raise Unfit('missing', f'image {path} does not exist') from error
    except IsADirectoryError as error:
        raise Unfit('missing', f'image {path} is a folder: name the images in it') from error
    except Image.DecompressionBombError as error:
        raise Unfit('large', f'image {path} declares {too_large(error)}') from error
    except BROKEN as error:
        raise Unfit('unknown', f'image {path} cannot be read: it is damaged or no image') from error
    header = _Header(size, orientation)
    return header, _decode(path, data, how) if whole else []


def _decode(path: str, data: bytes, how: Decoding) -> list[Fault]:
    """Doubts of the content of an image; raises if it is damaged."""
    if how.backend == 'pillow':
        try:
            with Image.open(BytesIO(data)) as opened:
                opened.load()
        except BROKEN as error:
            raise Unfit('file', f'image {path} is damaged: {error}') from error
        return []
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS[how.flag])
    said = _complaint()
    if decoded is None or (said and 'extraneous' not in said):
        why = f': {said}' if said else ''
        raise Unfit('file', f'image {path} is damaged{why}')
    return [Fault('doubt', f'image {path} may be damaged: {said}')] if said else []


def read_labels(path: str, how: Decoding) -> tuple[tuple[int, int], np.ndarray]:
    """Width and height of a label map, and how many pixels have each label, (256,)."""
    try:
        max_megapixels()  # sets Pillow's
        data = Path(path).read_bytes()
        with Image.open(BytesIO(data)) as opened:
            mode, size, kind = opened.mode, opened.size, opened.format
            check_pixels(size)
            if kind == 'PNG':
                opened.verify()  # Pillow decodes without a look at the checksums
        if mode == 'P' and how.backend == 'cv2':
            raise Unfit(
                'palette',
                f"label map {path} has a palette, which imdecode_backend='cv2' reads as colours",
            )
        if kind == 'JPEG':
            raise Unfit('format', f'label map {path} is a JPEG, whose compression changes ids')
        if mode not in ('L', 'P', '1', *_DEPTH):
            raise Unfit(
                'format', f'label map {path} has mode {mode}, not 8-bit single-channel: colours'
            )
        if how.squeezes and min(size) == 1:
            own = 'x'.join(map(str, size))
            raise Unfit(
                'thin', f'label map {path} is {own}, and LoadAnnotations drops a side of one pixel'
            )
        with Image.open(BytesIO(data)) as opened:
            if mode in _DEPTH:
                return size, _deep(path, mode, np.array(opened))
            pixels = np.array(opened.histogram(), np.int64)
    except FileNotFoundError as error:
        raise Unfit('missing', f'label map {path} does not exist') from error
    except Image.DecompressionBombError as error:
        raise Unfit('large', f'label map {path} declares {too_large(error)}') from error
    except BROKEN as error:
        raise Unfit(
            'file', f'label map {path} cannot be read: it is damaged or no image'
        ) from error
    if mode == '1' and how.backend == 'pillow':
        pixels[[1, 255]] = pixels[[255, 1]]  # it counts white as 255, its arrays have it as 1
    return size, pixels


def _deep(path: str, mode: str, values: np.ndarray) -> np.ndarray:
    """The labels of a map of more than 8 bits, of which training takes the lower 8."""
    known = _fit(values) | (values == 65535)  # which becomes 255
    if not known.all():
        raise Unfit(
            'format',
            f'label map {path} has mode {mode}, not 8-bit single-channel: {_DEPTH[mode]} a pixel, '
            f'as instance ids have, e.g. {values[~known][0]}',
        )
    return np.bincount(values.ravel().astype(np.int64) % 256, minlength=256)


def count_labels(values: np.ndarray, path: str) -> tuple[np.ndarray, list[Fault]]:
    """How many pixels have each label, (256,), of a label map that the steps of a config gave."""
    known, faults = _fit(values), []
    if not known.all():
        text = f'the steps of the config give {values[~known][0]} as a label of {path}'
        faults.append(Fault('labels', f'{text} (allowed are whole numbers 0..255)'))
    return np.bincount(values[known].astype(np.int64), minlength=256), faults


def _fit(values: np.ndarray) -> np.ndarray:
    """Which are whole numbers from 0 to 255."""
    return (values >= 0) & (values < 256) & (values == np.floor(values))


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
