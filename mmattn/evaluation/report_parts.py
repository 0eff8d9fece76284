"""What the parts of a report share: numbers as text, the confusion matrix, smaller pictures."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from mmattn.visualization.report_page import Picture, Pictures, Table, Text
from mmattn.visualization.report_plots import plot_confusion

BACKGROUND = 'background'
_LISTED = 10  # most frequent confusions
_MAX_TABLE = 400  # classes; a page with more would be tens of megabytes
_MAX_SIDE = 1200  # pixels of an image in a picture: twenty of them are shown at once


def fraction(value: float) -> str:
    """A number from 0 to 1 as COCO's metric prints it; a dash for nan."""
    return '-' if np.isnan(value) else f'{value:.3f}'


def percent(value: float, missing: str = '-') -> str:
    """A number from 0 to 1 in percent, as `IoUMetric` rounds it; `missing` for nan."""
    return missing if np.isnan(value) else f'{100 * value:.2f}'


def confusion_parts(
    matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], folder: Path, name: str
) -> list:
    """A confusion matrix as a picture, its largest entries, and all of it as a table.

    Args:
        matrix: (R, C) counts; rows are true classes, columns predicted ones.
        rows, columns: R and C names.
        folder: folder of the page.
        name: the picture is `pictures/<name>_confusion.png`.
    """
    file = f'pictures/{name}_confusion.png'
    plot_confusion(matrix, rows, columns, folder / file)
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    totals, listed = matrix.sum(1), []
    for index in np.argsort(-wrong, axis=None, kind='stable')[:_LISTED]:
        row, column = divmod(int(index), len(columns))
        if wrong[row, column]:
            share = wrong[row, column] / totals[row]
            cells = str(wrong[row, column]), f'{100 * share:.1f} %'
            listed.append([rows[row], columns[column], *cells])
    counts = [[label, *map(str, line)] for label, line in zip(rows, matrix.tolist())]
    alt = 'confusion matrix; its numbers are in the table below'
    whole = Table('confusion matrix in numbers', ['truth, predicted:', *columns], counts, True)
    if len(columns) > _MAX_TABLE:
        whole = Text(f'The matrix of {len(columns)} columns is in report.json.')
    return [
        Pictures([Picture(file, alt, 'Rows: true classes. Columns: predicted ones.')]),
        Table('most frequent confusions', ['truth', 'predicted', 'count', 'of the truth'], listed),
        whole,
    ]


def shrunk(image: np.ndarray) -> tuple[np.ndarray, float]:
    """An image without a side of more than `_MAX_SIDE` pixels, and the factor, at most 1."""
    scale = min(1.0, _MAX_SIDE / max(image.shape[:2]))
    if scale == 1:
        return image, scale
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale
