"""Pictures in a window, one after another, where there is a display."""

import os
import sys

import numpy as np

from mmattn.errors import UsageError

_TITLE = 'mmattn'  # of the window, which all pictures share
_WITHOUT_WINDOW = ('agg', 'cairo', 'pdf', 'pgf', 'ps', 'svg', 'template')  # backends of matplotlib
_DPI = 100


def check_window(wait_time: float, remedy: str) -> None:
    """Refuse to show pictures where there is no display, or nothing that opens a window.

    Args:
        wait_time: seconds that a picture stays, 0 until a key is pressed.
        remedy: where the pictures are without a window, as a sentence.

    Raises:
        UsageError: there is none, or the time is negative.
    """
    if not wait_time >= 0:
        raise UsageError(f'--wait-time {wait_time:g}: allowed are 0 seconds and more.')
    linux = sys.platform.startswith('linux')
    if linux and not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        raise UsageError(
            f'--show: there is no display, as neither DISPLAY nor WAYLAND_DISPLAY is set. {remedy}'
        )
    from matplotlib import pyplot

    if pyplot.get_backend().lower() in _WITHOUT_WINDOW:
        raise UsageError(
            '--show: matplotlib finds no toolkit that opens a window. Run: pip install pyqt6. '
            f'Otherwise: {remedy[0].lower()}{remedy[1:]}'
        )


def show_picture(picture: np.ndarray, title: str, wait_time: float) -> None:
    """Show a picture in the window of this process, and wait.

    Args:
        picture: (H, W, 3) uint8 BGR.
        title: title of the window.
        wait_time: seconds that it stays; 0 until a key or a button is pressed, or the window is
            closed.
    """
    from matplotlib import pyplot

    figure = pyplot.figure(_TITLE, clear=True)
    height, width = picture.shape[:2]
    figure.set_dpi(_DPI)
    figure.set_size_inches(width / _DPI, height / _DPI)
    figure.canvas.manager.set_window_title(title)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture[..., ::-1], interpolation='nearest', aspect='auto')
    axes.set_axis_off()
    pyplot.show(block=False)
    if wait_time:
        pyplot.pause(wait_time)
    else:
        figure.canvas.mpl_connect('close_event', lambda event: event.canvas.stop_event_loop())
        figure.waitforbuttonpress()
