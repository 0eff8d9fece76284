"""Run-length encoded masks, checked before pycocotools reads them: it checks nothing."""

from reprlib import repr as show

import numpy as np


def check_rle(rle: dict, width: int, height: int) -> None:
    """Refuse a mask that does not cover an image of this size exactly.

    Args:
        rle: `size` [height, width], and `counts`, a string or a list of integers.
        width: pixels of the image.
        height: pixels of the image.

    Raises:
        ValueError: says what is wrong, as the beginning of a sentence.
    """
    size, counts = rle.get('size'), rle.get('counts')
    if type(size) is not list or list(map(type, size)) != [int, int]:
        raise ValueError(f'RLE size is {show(size)}, expected [height, width]')
    if size != [height, width]:
        raise ValueError(f'RLE size {size[1]}x{size[0]}, image {width}x{height}')
    if type(counts) is str:
        try:
            counts = run_lengths(counts)
        except ValueError as error:
            raise ValueError(f'RLE counts are damaged: {error}') from error
    if type(counts) is not list:
        raise ValueError(
            f'RLE counts are damaged: {show(counts)}, allowed: a string, or a list of integers'
        )
    wrong = [count for count in counts if type(count) is not int or not 0 <= count < 2**32]
    if wrong:
        raise ValueError(f'RLE counts hold {show(wrong[0])}')
    if sum(counts) != width * height:
        raise ValueError(f'RLE covers {sum(counts)} px, image has {width * height}')


def run_lengths(counts: str) -> list[int]:
    """The runs in pycocotools' compressed counts, of 0 and 1 in turn, column by column.

    A count is spread over characters of 5 bits, the lowest first: bit 32 marks that more follow,
    bit 16 of the last one is the sign. From the fourth count on it is the difference to the count
    two places earlier.

    Raises:
        ValueError: pycocotools cannot have written them.
    """
    code = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    if not counts or code.min() < 0 or code.max() > 63 or code[-1] & 32:
        raise ValueError(f'{show(counts)} is no RLE, or cut short')
    last = np.flatnonzero(code & 32 == 0)
    lengths = np.diff(last, prepend=-1)
    if lengths.max() > 6:  # pycocotools reads another number: its shifts overflow
        raise ValueError(f'{show(counts)} has a number of more than 30 bits')
    first = last - lengths + 1
    place = np.arange(code.size) - first.repeat(lengths)
    runs = np.add.reduceat((code & 31) << 5 * place, first)
    runs -= (code[last] >> 4 & 1) << 5 * lengths
    for parity in 1, 2:
        runs[parity::2] = runs[parity::2].cumsum()
    return runs.tolist()
