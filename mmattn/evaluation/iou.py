"""Confusion matrices of label maps, and areas per class: exact, in one pass of integers.

Reference code: mmseg, evaluation/metrics/iou_metric.py (`intersect_and_union`). Differs from it in:
int64 throughout, since fp32 sums lose pixels above 2**24; all pairs are returned, not only sums.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 1 << 18  # pixels per bincount, so that its int64 copy (2 MiB) stays in the cache


def confusion(
    prediction: 'np.ndarray | Tensor',
    label: 'np.ndarray | Tensor',
    num_classes: int,
    ignore_index: int = 255,
) -> np.ndarray:
    """Pixels per pair of label and predicted class, (num_classes + 1, num_classes + 1) int64.

    Rows are labels, columns predictions; the last row and the last column hold values outside of
    0..num_classes-1. Pixels whose label is `ignore_index` are not counted.

    Args:
        prediction: integers of any kind and shape, on any device.
        label: integers of the same shape.
        num_classes: 1 or more.
        ignore_index: label that is not counted, any integer.

    Raises:
        ValueError: the shapes differ; num_classes is below 1.
        TypeError: values are not integers.
    """
    if num_classes < 1:
        raise ValueError(f'confusion: {num_classes=}, allowed: 1 or more')
    prediction, label = _integers(prediction, 'prediction'), _integers(label, 'label')
    if prediction.shape != label.shape:
        raise ValueError(
            f'confusion: the shapes differ: prediction {prediction.shape}, label {label.shape}'
        )
    prediction, label = prediction.reshape(-1), label.reshape(-1)
    bits = (num_classes - 1).bit_length()
    matrix = np.zeros((num_classes + 1,) * 2, np.int64)
    # All pairs of two bytes fit into 16 bits, so that labels need no test of their range.
    pairs = np.zeros((256, 1 << bits), np.int64) if bits <= 8 else None
    for start in range(0, label.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        columns, rows = _bytes(prediction[part]), _bytes(label[part])
        if pairs is None or columns is None or rows is None or columns.max() >> bits:
            matrix += _any_values(prediction[part], label[part], num_classes, ignore_index)
            continue
        index = rows.astype(np.uint16)
        index <<= bits
        index += columns
        pairs += np.bincount(index, minlength=pairs.size).reshape(pairs.shape)
    if pairs is not None:
        n = num_classes
        if 0 <= ignore_index < 256:
            pairs[ignore_index] = 0
        matrix[:n, :n] += pairs[:n, :n]
        matrix[:n, n] += pairs[:n, n:].sum(1)
        matrix[n, :n] += pairs[n:, :n].sum(0)
        matrix[n, n] += pairs[n:, n:].sum()
    return matrix


def areas(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels per class of intersection, union, prediction and label, (num_classes,) int64 each.

    As in mmseg, a pixel whose label is no class counts for its predicted class, and a pixel whose
    prediction is no class for its label.

    Args:
        matrix: result of `confusion`.
    """
    intersection = np.diagonal(matrix)[:-1].copy()
    prediction, label = matrix[:, :-1].sum(0), matrix[:-1].sum(1)
    return intersection, prediction + label - intersection, prediction, label


def _integers(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values.cpu() if hasattr(values, 'cpu') else values)
    if array.dtype.kind not in 'iub':
        raise TypeError(f'confusion: {name} is {array.dtype}, allowed: integers')
    return array


def _bytes(values: np.ndarray) -> np.ndarray | None:
    """Values as uint8; None if one is outside of 0..255."""
    if values.dtype == np.uint8:
        return values
    fits = int(np.bitwise_or.reduce(values)) >> 8 == 0  # a negative one sets the highest bits
    return values.astype(np.uint8) if fits else None


def _any_values(
    prediction: np.ndarray, label: np.ndarray, num_classes: int, ignore_index: int
) -> np.ndarray:
    """`confusion` for values of any range; slower."""
    prediction, label = prediction.astype(np.int64), label.astype(np.int64)
    counted = label != ignore_index
    columns, rows = (
        np.where((values >= 0) & (values < num_classes), values, num_classes)
        for values in (prediction[counted], label[counted])
    )
    side = num_classes + 1
    return np.bincount(rows * side + columns, minlength=side * side).reshape(side, side)
