"""Outlines and masks in the forms of annotation tools."""

import math
from collections.abc import Iterable, Sequence
from reprlib import repr as show
from typing import Any

import numpy as np
from pycocotools import mask as coder

from ..coco_boxes import MAX_COORDINATE
from ..image_limits import check_megapixels

_CORNERS = 64  # of the polygon of an ellipse
_DIGITS = 3  # decimals of a coordinate or an area, in pixels


def numbers(values: Iterable[Any]) -> list[float]:
    """Values as floats; texts of numbers, as XML has them, included.

    Raises:
        ValueError: one of them is no number, or out of range.
    """
    found = []
    for value in values:
        try:
            number = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= MAX_COORDINATE:
            raise ValueError(f'{show(value)} is no coordinate')
        found.append(number)
    return found


def rounded(value: float) -> float:
    """A coordinate or an area with few decimals; an integer if it is whole."""
    value = round(value, _DIGITS)
    return int(value) if value == int(value) else value


def points(pairs: Any) -> list[float]:
    """Points [[x, y], ...] as x and y in turn.

    Raises:
        ValueError: they are no points.
    """
    if not isinstance(pairs, Sequence) or not all(
        isinstance(p, Sequence) and not isinstance(p, str) and len(p) == 2 for p in pairs
    ):
        raise ValueError(f'{show(pairs)} are no points')
    return numbers(value for pair in pairs for value in pair)


def ellipse(x: float, y: float, width: float, height: float, degrees: float = 0) -> list[float]:
    """The outline of an ellipse with these radii, rotated clockwise about its centre."""
    turn, outline = math.radians(degrees), []
    for i in range(_CORNERS):
        angle = 2 * math.pi * i / _CORNERS
        dx, dy = width * math.cos(angle), height * math.sin(angle)
        outline.append(x + dx * math.cos(turn) - dy * math.sin(turn))
        outline.append(y + dx * math.sin(turn) + dy * math.cos(turn))
    return outline


def turned_box(
    x: float, y: float, width: float, height: float, degrees: float, pivot: tuple[float, float]
) -> list[float]:
    """x1, y1, x2, y2 around a box that is rotated clockwise about a point."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = []
    for cx, cy in ((x, y), (x + width, y), (x + width, y + height), (x, y + height)):
        dx, dy = cx - pivot[0], cy - pivot[1]
        corners += [pivot[0] + dx * cosine - dy * sine, pivot[1] + dx * sine + dy * cosine]
    return bounds([corners])


def bounds(polygons: list[list[float]]) -> list[float]:
    """x1, y1, x2, y2 around outlines."""
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs), max(ys)]


def clip(polygons: list[list[float]], size: tuple[int, int]) -> list[list[float]]:
    """Outlines whose points are moved into an image of this width and height."""
    return [
        [min(max(value, 0), size[i % 2]) for i, value in enumerate(polygon)] for polygon in polygons
    ]


def area(polygons: list[list[float]]) -> float:
    """Sum of the areas of outlines, in square pixels."""
    total = 0.0
    for polygon in polygons:
        xs, ys = polygon[::2], polygon[1::2]
        shoelace = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))
        total += abs(shoelace) / 2
    return total


def encode(pixels: np.ndarray) -> dict:
    """Compressed RLE of a mask (H, W)."""
    rle = coder.encode(np.asfortranarray(pixels, np.uint8))
    return dict(size=list(map(int, rle['size'])), counts=rle['counts'].decode())


def place(pixels: np.ndarray, left: int, top: int, size: tuple[int, int]) -> dict:
    """Compressed RLE of a mask (h, w) at a place of an image.

    Args:
        pixels: the mask; what leaves the image is cut off.
        left: column of its first pixel.
        top: row of its first pixel.
        size: width and height of the image.
    """
    width, height = size
    check_megapixels('mask of an image that', width * height)
    whole = np.zeros((height, width), bool)
    rows, columns = pixels.shape
    x, y = max(0, left), max(0, top)
    part = pixels[y - top : max(0, height - top), x - left : max(0, width - left)]
    if rows and columns and part.size:
        whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    return encode(whole)


def decode(polygons: list[list[float]], mask: dict | None, size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) of outlines, or of an RLE.

    Args:
        polygons: outlines, which count if there is no mask.
        mask: RLE, compressed or not.
        size: width and height of the image.
    """
    width, height = size
    if mask is None:
        mask = coder.merge(coder.frPyObjects(clip(polygons, size), height, width))
    elif not isinstance(mask['counts'], str):
        mask = coder.frPyObjects(mask, height, width)
    return coder.decode(mask).astype(bool)


def compress(mask: dict) -> dict:
    """An RLE, compressed if it is not."""
    if isinstance(mask['counts'], str):
        return mask
    rle = coder.frPyObjects(mask, *mask['size'])
    return dict(size=mask['size'], counts=rle['counts'].decode())


def mask_bounds(mask: dict) -> tuple[list[float], int]:
    """x1, y1, x2, y2 around a compressed RLE, and its pixels."""
    x, y, width, height = coder.toBbox(mask).tolist()
    return [x, y, x + width, y + height], int(coder.area(mask))
