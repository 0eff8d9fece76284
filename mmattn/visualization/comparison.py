"""Pictures that compare image, ground truth and prediction, with a legend."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from mmattn.errors import WriteError, cannot_write

from .objects import Objects, draw_objects
from .text import draw_text, legible, text_width

_GAP = 6  # pixels between panels
_LINE = 22  # pixels per line of text
_MIN_WIDTH = 320  # pixels; narrower panels are enlarged, so that the titles fit
_MAX_SIDE = 2000  # pixels; panels are not enlarged beyond it, however narrow they are
_MIN_LEGEND = 64  # pixels; narrower pictures get a margin, so that the legend is visible


def colourise(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """(H, W) class indices -> (H, W, 3) uint8 BGR; other values, such as 255, are black."""
    count = len(palette)
    table = np.zeros((max(256, count + 1), 3), np.uint8)
    table[:count] = np.asarray(palette, np.uint8)[:, ::-1]
    if labels.dtype != np.uint8:
        labels = labels.astype(np.int64)
        labels = np.where((labels < 0) | (labels >= count), len(table) - 1, labels)
    return table[labels]


def overlay(
    image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]], opacity: float = 0.55
) -> np.ndarray:
    """The colours of the classes over the image, (H, W, 3) uint8 BGR."""
    return cv2.addWeighted(image, 1 - opacity, colourise(labels, palette), opacity, 0)


def compare_labels(
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    *,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> np.ndarray:
    """One picture: the panels 'image', 'truth' (if given) and 'prediction' above a legend.

    Args:
        image: (H, W, 3) uint8 BGR.
        truth: (H, W) class indices, 255 where ignored (black).
        prediction: (H, W) class indices.
        classes, palette: names and RGB colours of the class indices.

    Returns:
        (H', W', 3) uint8 BGR.
    """
    panels = {'image': image}
    if truth is not None:
        panels['truth'] = colourise(truth, palette)
    panels['prediction'] = colourise(prediction, palette)
    scale = max(1.0, min(_MIN_WIDTH / image.shape[1], _MAX_SIDE / max(image.shape[:2])))
    if scale > 1:
        panels = {
            name: cv2.resize(panel, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
            for name, panel in panels.items()
        }
    present = np.unique(
        prediction if truth is None else np.concatenate([truth.ravel(), prediction.ravel()])
    )
    return side_by_side(panels, present, classes, palette)


def compare_objects(
    image: np.ndarray,
    truth: Objects | None,
    prediction: Objects,
    *,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> np.ndarray:
    """One picture: the panels 'truth' (if given) and 'prediction' above a legend.

    Args:
        image: (H, W, 3) uint8 BGR.
        truth, prediction: objects in the image.
        classes, palette: names and RGB colours of the class indices.

    Returns:
        (H', W', 3) uint8 BGR.
    """
    shown = {'prediction': prediction}
    if truth is not None:
        shown = {'truth': truth} | shown
    panels = {name: draw_objects(image, objects, palette) for name, objects in shown.items()}
    present = np.unique(np.concatenate([objects.labels for objects in shown.values()]))
    return side_by_side(panels, present, classes, palette)


def side_by_side(
    panels: dict[str, np.ndarray],
    present: Sequence[int],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> np.ndarray:
    """Panels of one height, titled by their keys, above a legend of the classes that are present.

    Args:
        panels: (H, W, 3) uint8 BGR each; '' for no title.
        present: class indices for the legend; one that is no class is named 'ignored'.
        classes, palette: names and RGB colours of the class indices.

    Returns:
        (H', W', 3) uint8 BGR.
    """
    columns, top = [], _LINE if any(panels) else 0
    for name, panel in panels.items():
        title = np.full((top, panel.shape[1], 3), 255, np.uint8)
        if name:
            draw_text(title, name, (2, _LINE - 7))
        gap = np.full((top + panel.shape[0], _GAP, 3), 255, np.uint8)
        columns += [np.vstack([title, panel]), gap]
    body = np.hstack(columns[:-1])
    margin = _MIN_LEGEND - body.shape[1]
    if margin > 0:
        body = np.pad(body, ((0, 0), (0, margin), (0, 0)), constant_values=255)
    return np.vstack([body, _legend(body.shape[1], present, classes, palette)])


def _legend(width: int, present: np.ndarray, classes, palette) -> np.ndarray:
    """Swatch and name of each class that is present, in as many lines as needed."""
    known = [int(i) for i in present if 0 <= i < len(classes)]
    entries = [(legible(classes[i], i), palette[i][::-1]) for i in known]
    if len(known) < len(present):
        entries.append(('ignored', (0, 0, 0)))
    lines, x = [np.full((_LINE, width, 3), 255, np.uint8)], 2
    for name, colour in entries:
        length = 22 + text_width(name) + 14
        if x + length > width and x > 2:
            lines.append(np.full((_LINE, width, 3), 255, np.uint8))
            x = 2
        colour = tuple(int(c) for c in colour)
        cv2.rectangle(lines[-1], (x, 5), (x + 16, _LINE - 5), colour, -1)
        draw_text(lines[-1], name, (x + 22, _LINE - 7))
        x += length
    return np.vstack(lines)


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write a BGR picture, making its folder.

    Raises:
        WriteError: it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    if not cv2.imwrite(str(path), picture):
        raise WriteError(f'cannot write {path}. Check the folder and the free space.')
