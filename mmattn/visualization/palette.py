"""Colours of classes: the palette of a data set, extended to all its classes."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mmattn.errors import UsageError

_RESERVED = ((0, 0, 0), (255, 255, 255))  # ignored pixels, and the background of legends
_LEVELS = np.linspace(0, 255, 16).round().astype(int)  # candidates of red, green and blue


def palette_of(meta: dict) -> list[tuple[int, int, int]]:
    """RGB colours of the classes of a data set, one for each.

    Its `palette` may be lists, tuples, an array, or a name that mmdet knows. A palette that is
    missing or too short is extended by colours that differ most from those before.

    Args:
        meta: metainfo with `classes`, and optionally `palette`.

    Raises:
        UsageError: an invalid palette.
    """
    count, palette = len(meta['classes']), meta.get('palette')
    if isinstance(palette, str):
        palette = _named(palette, count)
    colours = [] if palette is None else _colours(palette)
    if np.ndim(palette) == 1 and len(colours) == 1:  # one colour for all
        colours = colours * count
    if len(colours) >= count:
        return colours
    return [*colours, *distinct_colours(count - len(colours), tuple(colours))]


def _named(name: str, count: int) -> list | None:
    """A palette of mmdet by its name, such as 'coco'; None for a random one."""
    from mmdet.visualization import get_palette

    if name in ('random', 'none'):
        return None
    try:
        return get_palette(name, 0)
    except (TypeError, KeyError, ValueError, AssertionError) as error:
        raise UsageError(
            f'metainfo palette={name!r}: no such palette. Write a list of colours, each three '
            'numbers from 0 to 255.'
        ) from error


def _colours(palette: Sequence | np.ndarray) -> list[tuple[int, int, int]]:
    try:
        values = np.asarray(palette)
        values = values[None] if values.ndim == 1 and values.size == 3 else values
        is_whole = values.size == 0 or (values.dtype.kind in 'iuf' and (values % 1 == 0).all())
    except ValueError:  # colours of different lengths
        is_whole = False
    if not is_whole or (values.size and (values.ndim != 2 or values.shape[1] != 3)):
        raise UsageError(
            f'metainfo palette={_short(palette)}: allowed are colours of three whole numbers, red, '
            'green and blue.'
        )
    if values.size and not 0 <= values.min() <= values.max() <= 255:
        raise UsageError(
            f'metainfo palette={_short(palette)}: {values.min()} to {values.max()}, allowed are 0 '
            'to 255.'
        )
    return [tuple(colour) for colour in values.reshape(-1, 3).astype(int).tolist()]


def _short(palette: Sequence | np.ndarray) -> str:
    text = repr(palette)
    return text if len(text) < 80 else f'{text[:76]} ...'


@lru_cache(maxsize=32)
def distinct_colours(
    count: int, taken: tuple[tuple[int, int, int], ...] = ()
) -> tuple[tuple[int, int, int], ...]:
    """`count` colours, each as far as possible from those before it, from black and from white.

    Args:
        count: number of colours; up to 4000 differ from each other.
        taken: colours that are in use.
    """
    grid = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing='ij'), -1).reshape(-1, 3)
    nearest = np.full(len(grid), np.inf)
    for colour in (*_RESERVED, *taken):
        nearest = np.minimum(nearest, np.square(grid - np.array(colour)).sum(1))
    colours = []
    for _ in range(count):
        colour = grid[nearest.argmax()]
        colours.append(tuple(colour.tolist()))
        nearest = np.minimum(nearest, np.square(grid - colour).sum(1))
    return tuple(colours)
