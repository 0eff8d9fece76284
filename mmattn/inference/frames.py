"""Frames: images and the frames of videos, loaded one after another."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mmattn.datasets.image_limits import check_megapixels
from mmattn.datasets.loading import Loaded
from mmattn.errors import DataError, MmattnError

from .predictor import Predictor
from .sources import is_video


class Frame(NamedTuple):
    """An image, or a frame of a video.

    Attributes:
        source: name in messages.
        out: name of its output files, without suffix.
        image: image as loaded; or the error if it cannot be read.
        rate: frames per second of its video; None for an image.
        prepared: input of `Predictor.predict`.
        shown: (H, W, 3) uint8 BGR, to draw on.
    """

    source: str
    out: Path
    image: Loaded | Exception
    rate: float | None = None
    prepared: dict | None = None
    shown: np.ndarray | None = None


def load_frames(paths: dict[Path, Path], predictor: Predictor) -> Iterator[Frame]:
    """Load all images and video frames; a frame that cannot be read holds the error.

    Args:
        paths: image or video -> name of its output files.
        predictor: its reader loads the images.
    """
    for path, out in paths.items():
        if is_video(path):
            yield from _video_frames(path, out, predictor)
            continue
        try:
            image = predictor.load(path)
        except MmattnError as error:
            image = error
        yield Frame(str(path), out, image)


def _video_frames(path: Path, out: Path, predictor: Predictor) -> Iterator[Frame]:
    video = cv2.VideoCapture(str(path))
    try:
        pixels = video.get(cv2.CAP_PROP_FRAME_WIDTH) * video.get(cv2.CAP_PROP_FRAME_HEIGHT)
        try:
            check_megapixels(f'video {path} declares frames of', pixels)
        except DataError as error:
            yield Frame(str(path), out, error)
            return
        rate, number = video.get(cv2.CAP_PROP_FPS) or 25.0, 0
        while True:
            success, image = video.read()
            if not success:
                break
            number += 1
            try:
                image = predictor.reader.of_frame(image)
            except MmattnError as error:
                yield Frame(str(path), out, DataError(f'video {path}: {error}'))
                return
            yield Frame(f'{path}#{number}', out / f'{number:06d}', image, rate)
        if not number:
            yield Frame(str(path), out, DataError(f'video {path} cannot be read.'))
    finally:
        video.release()


def total_frames(paths: dict[Path, Path]) -> int | None:
    """Number of images and frames; None if a video does not declare its length."""
    total = 0
    for path in paths:
        if not is_video(path):
            total += 1
            continue
        video = cv2.VideoCapture(str(path))
        frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 1
        video.release()
        if frames < 1:
            return None
        total += frames
    return total
