"""Size and decoding time of images in lossless formats, with the decoder that training uses."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mmattn.datasets.image_io import read_image
from mmattn.datasets.lossless import decode, encode, encode_png
from mmattn.files import check_writable

from .machine import describe_in_words, describe_machine
from .timing import ResultsDiffer, min_times

_SLOW_ROUNDS = 1  # of a decoder written in Python, which takes seconds
_OPENCV = 'OpenCV'


@dataclass(frozen=True)
class FormatTiming:
    """A format, over all images.

    Attributes:
        name: the format.
        decoder: what decodes it.
        bytes: size of all files.
        ms: time to decode all of them, the sum of the shortest of all rounds.
    """

    name: str
    decoder: str
    bytes: int
    ms: float


def report_formats(
    images: list[str], rounds: int, json_path: str | Path | None = None
) -> list[FormatTiming]:
    """Print size and decoding time of images in each format; optionally write it as JSON.

    Args:
        images: paths.
        rounds: how often each file is decoded, formats alternating; the shortest time counts.
        json_path: JSON file for the figures.

    Raises:
        DataError: an image cannot be read.
        ResultsDiffer: a format does not give the same pixels.
        WriteError: the JSON file cannot be written.
    """
    if json_path:
        check_writable(Path(json_path).parent, '--json')
    pixels = [read_image(path) for path in images]
    cv2.setNumThreads(0)  # as in a data worker
    machine = describe_machine()
    print(describe_in_words(machine))
    megapixels = sum(image.shape[0] * image.shape[1] for image in pixels) / 1e6
    print(f'{len(images)} images, {megapixels:.2f} megapixels, best of {rounds} rounds')
    print(f'{"format":<34}{"decoder":<10}{"MB":>9}{"ms":>9}{"original over it":>18}')
    timings: list[FormatTiming] = []
    for timing in _measure(images, pixels, rounds):
        timings.append(timing)
        ratio = timings[0].ms / timing.ms
        print(
            f'{timing.name:<34}{timing.decoder:<10}{timing.bytes / 1e6:>9.2f}{timing.ms:>9.2f}'
            f'{ratio:>17.2f}x'
        )
    if not any(timing.name == 'QOI' for timing in timings):
        print(f'{"QOI":<34}no decoder installed')
    if json_path:
        content = dict(machine=machine, rounds=rounds, rows=[asdict(timing) for timing in timings])
        Path(json_path).write_text(json.dumps(content, indent=1), encoding='utf-8')
    return timings


def _measure(images: list[str], pixels: list[np.ndarray], rounds: int) -> list[FormatTiming]:
    formats: dict[str, Callable[[np.ndarray], bytes]] = {
        'WebP, lossless': partial(encode, kind='webp'),
        'BMP': partial(encode, kind='bmp'),
        'PNG, no filter, stored': partial(encode_png, level=0),
        'PNG, no filter, level 1': partial(encode_png, level=1),
        'PNG, no filter, level 6': partial(encode_png, level=6),
    }
    names = ['the originals', *formats]
    size, ms = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
    for path, image in zip(images, pixels):
        files = [np.fromfile(path, np.uint8)]
        files += [np.frombuffer(make(image), np.uint8) for make in formats.values()]
        for name, data in zip(names, files):
            _check_equal(name, path, decode(data, is_label=False), image)
            size[name] += data.size
        times = min_times(rounds, *[partial(decode, data, False) for data in files])
        for name, time in zip(names, times):
            ms[name] += time
    timings = [FormatTiming(name, _OPENCV, size[name], ms[name]) for name in names]
    qoi = _measure_qoi(images, pixels)
    return [*timings, qoi] if qoi else timings


def _measure_qoi(images: list[str], pixels: list[np.ndarray]) -> FormatTiming | None:
    """QOI, which OpenCV does not read and Pillow decodes in Python; None without a decoder."""
    Image.init()
    if 'QOI' not in Image.SAVE or 'QOI' not in Image.OPEN:
        return None
    size, ms = 0, 0.0
    for path, image in zip(images, pixels):
        buffer = BytesIO()
        Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(buffer, 'QOI')
        data = buffer.getvalue()

        def read(data: bytes = data) -> np.ndarray:
            return np.asarray(Image.open(BytesIO(data)))[..., ::-1]

        _check_equal('QOI', path, read(), image)
        size += len(data)
        ms += min_times(_SLOW_ROUNDS, read)[0]
    return FormatTiming('QOI', 'Pillow', size, ms)


def _check_equal(name: str, path: str, decoded: np.ndarray | None, image: np.ndarray) -> None:
    if decoded is None or not np.array_equal(decoded, image):
        raise ResultsDiffer(f'{name} of {path} does not give the same pixels.')
