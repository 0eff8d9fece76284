"""Colours of classes: those that a data set names, and as many more as there are classes."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mmattn.errors import UsageError

_TAKEN = ((0, 0, 0), (255, 255, 255))  # what is ignored, and the paper of legends
_STEPS = np.linspace(0, 255, 16).round().astype(int)  # of each of red, green and blue


def palette_of(meta: dict) -> list[tuple[int, int, int]]:
    """RGB colours of the classes of a data set, one for each.

    Its own palette may be lists, tuples or an array; one that is too short is filled up with
    colours that differ most from all before, as is one that is not there.

    Args:
        meta: `classes`, and maybe `palette`.

    Raises:
        UsageError: the palette is something else.
    """
    count, palette = len(meta['classes']), meta.get('palette')
    if isinstance(palette, str):
        palette = _named(palette, count)
    own = [] if palette is None else _colours(palette)
    own = own * count if np.ndim(palette) == 1 and len(own) == 1 else own  # one colour for all
    if len(own) >= count:
        return own
    return [*own, *distinct_colours(count - len(own), tuple(own))]


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
        whole = values.size == 0 or (values.dtype.kind in 'iuf' and (values % 1 == 0).all())
    except ValueError:  # colours of different lengths
        whole = False
    if not whole or (values.size and (values.ndim != 2 or values.shape[1] != 3)):
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
    """So many colours, each as far as can be from those before it, from black and from white.

    Args:
        count: how many; up to 4000 differ from each other.
        taken: colours that there are already.
    """
    grid = np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS, indexing='ij'), -1).reshape(-1, 3)
    nearest = np.full(len(grid), np.inf)
    for colour in (*_TAKEN, *taken):
        nearest = np.minimum(nearest, np.square(grid - np.array(colour)).sum(1))
    found = []
    for _ in range(count):
        colour = grid[nearest.argmax()]
        found.append(tuple(colour.tolist()))
        nearest = np.minimum(nearest, np.square(grid - colour).sum(1))
    return tuple(found)
