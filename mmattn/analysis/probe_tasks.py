"""Tasks of the context probe: small generated images whose answer needs one ability.

An image is (C, size, size), its target (size, size) a class a pixel, `IGNORED` where nothing is
asked. Each task has four classes of equal frequency, so that a constant answer is right in a
quarter of the cases, and a rule that finds every answer in the image, so that the ceiling is 100 %.
Pixels are asked only where what gives the answer lies further away than `REACH`, so that what small
kernels see is independent of it. There are two exceptions: the near dots of `scale` are at `REACH`,
and in `shift` an edge of the right patch may come into view.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

SIZE = 12  # height and width of the images; the tasks need 12 and more
COLOURS = 4  # number of classes of all tasks
CHANCE, CEILING = 100 / COLOURS, 100.0  # accuracy in percent
IGNORED = -100  # class of pixels at which nothing is asked
REACH = 2  # pixels to each side that a local network sees: two 3x3 convolutions
_KEYS = 8  # number of different keys of the look-up
_PAIRS = 4  # number of keys with a value in an image
_MARKS = 3  # number of marks of each colour of which one is the largest
_RADII = (2, 4)  # distances of the dots of the two scales from their centre, in pixels


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: name in tables.
        ability: what a network needs to solve it, in a few words.
        question: what is asked, in a sentence.
        channels: C of its images.
        draw: generator, N, size -> images (N, C, size, size) and targets (N, size, size).
    """

    name: str
    ability: str
    question: str
    channels: int
    draw: Callable[[Generator, int, int], tuple[Tensor, Tensor]]


def draw_marker(generator: Generator, batch: int, size: int) -> tuple[Tensor, Tensor]:
    """The colour of the only marker, asked at the pixels in neither its rows nor its columns.

    What is within `REACH` of its row counts as its row, and likewise for the column.
    """
    x, target = _empty(batch, COLOURS, size)
    colour, row, column = (_integers(generator, n, batch) for n in (COLOURS, size, size))
    _paint(x, colour, row, column)
    places = torch.arange(size)
    far_rows = (places - row[:, None]).abs() > REACH  # (N, size)
    far_columns = (places - column[:, None]).abs() > REACH
    asked = far_rows[:, :, None] & far_columns[:, None, :]
    return x, torch.where(asked, colour[:, None, None], target)


def draw_row(generator: Generator, batch: int, size: int) -> tuple[Tensor, Tensor]:
    """The colour of the marker in the same row.

    Four rows have a marker, one of each colour, all in the left third of the image; the right part
    is asked. In half of the images left and right are exchanged.
    """
    x, target = _empty(batch, COLOURS, size)
    step = size // COLOURS
    row = _integers(generator, step, batch, 1) + step * torch.arange(COLOURS)  # (N, 4)
    column = _integers(generator, size // 3, batch, COLOURS)
    colour = _orders(generator, batch, COLOURS)
    _paint(x, colour, row, column)
    samples = torch.arange(batch)[:, None]
    target[samples, row, size // 3 + REACH :] = colour[..., None]
    mirrored = _integers(generator, 2, batch)[:, None, None] == 1
    x = torch.where(mirrored[..., None], x.flip(3), x)
    return x, torch.where(mirrored, target.flip(2), target)


def draw_column(generator: Generator, batch: int, size: int) -> tuple[Tensor, Tensor]:
    """The colour of the marker in the same column: `draw_row` with rows and columns exchanged."""
    x, target = draw_row(generator, batch, size)
    return x.mT.contiguous(), target.mT.contiguous()


def draw_lookup(generator: Generator, batch: int, size: int) -> tuple[Tensor, Tensor]:
    """The colour to the right of the key that the asked pixel shows.

    Four of eight keys have a colour each; the cells of a grid hold these pairs and pixels that ask
    for one of them. Channels: 8 keys of pairs, 8 keys that are asked for, 4 colours.
    """
    x, target = _empty(batch, 2 * _KEYS + COLOURS, size)
    rows, columns = size // 3, size // 4
    cell = _orders(generator, batch, rows * columns)
    row, column = 1 + 3 * (cell // columns), 1 + 4 * (cell % columns)
    key = _orders(generator, batch, _KEYS)[:, :_PAIRS]
    colour = _orders(generator, batch, COLOURS)
    pair_row, pair_column = row[:, :_PAIRS], column[:, :_PAIRS]
    _paint(x, key, pair_row, pair_column)
    _paint(x, 2 * _KEYS + colour, pair_row, pair_column + 1)
    row, column = row[:, _PAIRS:], column[:, _PAIRS:]
    chosen = _integers(generator, _PAIRS, *row.shape)
    _paint(x, _KEYS + key.gather(1, chosen), row, column)
    target[torch.arange(batch)[:, None], row, column] = colour.gather(1, chosen)
    return x, target


def draw_count(generator: Generator, batch: int, size: int) -> tuple[Tensor, Tensor]:
    """The number of marks, 1 to 4, asked in the two columns at the right edge, far from them."""
    x, target = _empty(batch, 1, size)
    width = size - 2 - REACH
    number = 1 + _integers(generator, COLOURS, batch)
    rank = _orders(generator, batch, size * width).argsort(1)
    x[:, 0, :, :width] = (rank < number[:, None]).view(batch, size, width).to(x.dtype)
    target[:, :, -2:] = (number - 1)[:, None, None]
    return x, target


def draw_largest(generator: Generator, batch: int, size: int) -> tuple[Tensor, Tensor]:
    """The colour of the largest mark, asked in the two columns at the right edge.

    Each colour has three marks. The sum of the largest and its two small companions is about that
    of the other colours, and the values of an image have a random common factor, so that neither
    means nor a fixed threshold tell.
    """
    x, target = _empty(batch, COLOURS, size)
    rows, columns = (size + 1) // 2, (size - 1 - REACH) // 2
    cell = _orders(generator, batch, rows * columns)[:, : COLOURS * _MARKS]
    best = _integers(generator, COLOURS, batch)
    value = 0.1 + 0.7 * torch.rand(batch, COLOURS, _MARKS, generator=generator)
    companions = 0.3 * torch.rand(batch, _MARKS - 1, generator=generator)
    samples = torch.arange(batch)
    value[samples, best, 0], value[samples, best, 1:] = 1.0, companions
    value *= 0.3 + 0.7 * torch.rand(batch, 1, 1, generator=generator)
    colour = torch.arange(COLOURS).repeat_interleave(_MARKS).expand(batch, -1)
    _paint(x, colour, 2 * (cell // columns), 2 * (cell % columns), value.flatten(1))
    target[:, :, -2:] = best[:, None, None]
    return x, target


def draw_shift(generator: Generator, batch: int, size: int) -> tuple[Tensor, Tensor]:
    """The colour at each pixel of a picture, asked where it would be if it lay in the middle.

    The picture, 2x2 patches of random colours on an empty ground, is shifted by up to a quarter of
    the image in both directions, by 2 pixels and more in one of them.
    """
    x, target = _empty(batch, COLOURS, size)
    side, most = size // 4 * 2, size // 4
    start = (size - side) // 2
    patches = _integers(generator, COLOURS, batch, side // 2, side // 2)
    picture = patches.repeat_interleave(2, 1).repeat_interleave(2, 2)
    steps = torch.arange(-most, most + 1)
    shifts = torch.cartesian_prod(steps, steps)
    shifts = shifts[shifts.abs().amax(1) >= REACH]
    shift = shifts[_integers(generator, len(shifts), batch)]  # (N, 2)
    places = start + torch.arange(side)
    row, column = places + shift[:, :1], places + shift[:, 1:]
    _paint(x, picture, row[:, :, None], column[:, None, :])
    target[:, start : start + side, start : start + side] = picture
    return x, target


def draw_scale(generator: Generator, batch: int, size: int) -> tuple[Tensor, Tensor]:
    """The colour of the four dots at distance 2 or of those at distance 4 around the asked pixel.

    A strip along the right edge says which of the two. Channels: 4 colours, 2 of the strip.
    """
    x, target = _empty(batch, COLOURS + len(_RADII), size)
    centres = torch.cartesian_prod(torch.tensor([4, size - 5]), torch.tensor([4, 5]))
    row, column = centres.T  # (4) each
    colours = _integers(generator, COLOURS, batch, len(_RADII), len(centres))
    for index, radius in enumerate(_RADII):
        for step in (-radius, radius):
            _paint(x, colours[:, index], (row + step)[None], column[None])
            _paint(x, colours[:, index], row[None], (column + step)[None])
    choice = _integers(generator, len(_RADII), batch)
    samples = torch.arange(batch)
    x[samples, COLOURS + choice, :, -1] = 1
    target[:, row, column] = colours[samples, choice]
    return x, target


def draw_channel(generator: Generator, batch: int, size: int) -> tuple[Tensor, Tensor]:
    """The colour of each pixel in one of four groups of channels.

    A pixel has all four colours, one in each group, in random order. A strip along the right edge
    says which group counts. Channels: 4 groups of 4 colours, 4 of the strip.
    """
    x, target = _empty(batch, COLOURS * COLOURS + COLOURS, size)
    colour = _orders(generator, batch, size, size, COLOURS)  # of each group
    groups = torch.nn.functional.one_hot(colour, COLOURS).flatten(3)  # (N, size, size, 16)
    x[:, : COLOURS * COLOURS] = groups.movedim(3, 1)
    choice = _integers(generator, COLOURS, batch)
    samples = torch.arange(batch)
    x[samples, COLOURS * COLOURS + choice, :, -1] = 1
    asked = size - 1 - REACH
    target[:, :, :asked] = colour[samples, :, :, choice][:, :, :asked]
    return x, target


def _empty(batch: int, channels: int, size: int) -> tuple[Tensor, Tensor]:
    """Images of zeros, and targets that ask nothing."""
    return torch.zeros(batch, channels, size, size), torch.full((batch, size, size), IGNORED)


def _integers(generator: Generator, count: int, *shape: int) -> Tensor:
    return torch.randint(count, shape, generator=generator)


def _orders(generator: Generator, *shape: int) -> Tensor:
    """Random orders of 0, 1, ... along the last axis."""
    return torch.rand(shape, generator=generator).argsort(-1)


def _paint(
    x: Tensor, channel: Tensor, row: Tensor, column: Tensor, value: Tensor | float = 1.0
) -> None:
    """Set pixels; the indices broadcast to (N, ...)."""
    samples = torch.arange(len(x)).view(-1, *(1,) * (channel.dim() - 1))
    x[samples, channel, row, column] = value


TASKS = {
    task.name: task
    for task in (
        Task(
            'marker',
            'global context',
            'Which colour has the marker, which is in another row and another column?',
            COLOURS,
            draw_marker,
        ),
        Task(
            'row', 'context of a row', 'Which colour has the marker in this row?', COLOURS, draw_row
        ),
        Task(
            'column',
            'context of a column',
            'Which colour has the marker in this column?',
            COLOURS,
            draw_column,
        ),
        Task(
            'lookup',
            'look-up by content',
            'Which colour is next to the key that this pixel shows?',
            2 * _KEYS + COLOURS,
            draw_lookup,
        ),
        Task('count', 'counting', 'How many marks are there, 1 to 4?', 1, draw_count),
        Task('largest', 'maximum', 'Which colour has the largest mark?', COLOURS, draw_largest),
        Task(
            'shift',
            'undoing a shift',
            'Which colour would be here if the picture lay in the middle?',
            COLOURS,
            draw_shift,
        ),
        Task(
            'scale',
            'choice of a scale',
            'Which colour have the near dots, or the far ones, as the strip says?',
            COLOURS + len(_RADII),
            draw_scale,
        ),
        Task(
            'channel',
            'choice of a channel',
            'Which colour has this pixel in the group of channels that the strip names?',
            COLOURS * COLOURS + COLOURS,
            draw_channel,
        ),
    )
}
