"""Write videos, checking that no frame is lost."""

import math
from pathlib import Path

import cv2
import numpy as np

from mmattn.errors import WriteError, cannot_write

_RATES = (0.1, 240.0)  # plausible frames per second; otherwise 25


class VideoWriter:
    """An MP4 file whose frames are counted on closing: OpenCV drops frames silently.

    Args:
        path: path of the file; its folder is created.
        rate: frames per second.

    Raises:
        WriteError: on the first frame, the file cannot be created; on closing, frames are missing.
    """

    def __init__(self, path: Path, rate: float) -> None:
        low, high = _RATES
        self.path = path
        self.rate = rate if math.isfinite(rate) and low <= rate <= high else 25.0
        self.frames, self.size, self.writer = 0, None, None

    def write(self, picture: np.ndarray) -> None:
        """Add an (H, W, 3) uint8 BGR picture; another size than the first is fitted into it."""
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
            raise cannot_write(self.path, error) from error
        codec = cv2.VideoWriter.fourcc(*'mp4v')
        self.writer = cv2.VideoWriter(str(self.path), codec, self.rate, self.size)
        if not self.writer.isOpened():
            raise WriteError(f'cannot write {self.path}. Check the folder and the free space.')

    def close(self, check: bool = True) -> None:
        """Close the file and count its frames."""
        if self.writer is None:
            return
        self.writer.release()
        self.writer = None
        if check and (written := count_frames(self.path)) != self.frames:
            raise WriteError(
                f'cannot write {self.path}: {written} of {self.frames} frames are in it. Check the '
                'free space.'
            )


def fitted(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture fitted into a size (width, height): shrunk if it is larger, padded with white."""
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
