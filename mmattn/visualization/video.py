"""Writing a video so that every frame is in it."""

import math
from pathlib import Path

import cv2
import numpy as np

from mmattn.errors import WriteError

_RATES = (0.1, 240.0)  # frames a second that are believed; else 25


class VideoWriter:
    """An MP4 of pictures, of which each must arrive: OpenCV itself drops them without a word.

    Args:
        path: of the file; its folder is made.
        rate: frames a second.

    Raises:
        WriteError: the file cannot be made, on the first frame; frames are missing in it, on
            closing.
    """

    def __init__(self, path: Path, rate: float) -> None:
        low, high = _RATES
        self.path = path
        self.rate = rate if math.isfinite(rate) and low <= rate <= high else 25.0
        self.frames, self.size, self.writer = 0, None, None

    def write(self, picture: np.ndarray) -> None:
        """Add an (H, W, 3) uint8 BGR picture; one of another size is fitted into the first's."""
        if self.writer is None:
            self.size = (
                picture.shape[1] + picture.shape[1] % 2,
                picture.shape[0] + (picture.shape[0] % 2),
            )
            self._open()
        self.writer.write(fitted(picture, self.size))
        self.frames += 1

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise WriteError(f'cannot write {self.path}: {why}.') from error
        codec = cv2.VideoWriter.fourcc(*'mp4v')
        self.writer = cv2.VideoWriter(str(self.path), codec, self.rate, self.size)
        if not self.writer.isOpened():
            raise WriteError(f'cannot write {self.path}. Check the folder and the free space.')

    def close(self, check: bool = True) -> None:
        """End the file and count what is in it."""
        if self.writer is None:
            return
        self.writer.release()
        self.writer = None
        if check and (there := count_frames(self.path)) != self.frames:
            raise WriteError(
                f'cannot write {self.path}: {there} of {self.frames} frames are in it. Check the '
                'free space.'
            )


def fitted(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture in a frame of a width and height: made smaller if it must be, the rest white."""
    width, height = size
    scale = min(1.0, width / picture.shape[1], height / picture.shape[0])
    if scale < 1:
        small = max(1, int(picture.shape[1] * scale)), max(1, int(picture.shape[0] * scale))
        picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
    bottom, right = height - picture.shape[0], width - picture.shape[1]
    if not bottom and not right:
        return picture
    return cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=[255] * 3)


def count_frames(path: Path) -> int:
    """Frames that can be read from a video."""
    video = cv2.VideoCapture(str(path))
    try:
        count = 0
        while video.grab():
            count += 1
        return count
    finally:
        video.release()
