"""Run-length encoded masks, as far as one must look into them before pycocotools does."""

from reprlib import repr as short

import numpy as np


def run_lengths(counts: str) -> list[int]:
    """The runs in pycocotools' compressed counts, of 0 and 1 in turn, column by column.

    A count is spread over characters of 5 bits, the lowest first: 32 marks that more follow, 16 in
    the last one the sign. From the fourth on it is the difference to the count two places earlier.

    Raises:
        ValueError: pycocotools cannot have written them.
    """
    code = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    if not counts or code.min() < 0 or code.max() > 63 or code[-1] & 32:
        raise ValueError(f'counts are {short(counts)}: no RLE, or cut short')
    last = np.flatnonzero(code & 32 == 0)
    lengths = np.diff(last, prepend=-1)
    if lengths.max() > 6:  # pycocotools reads another number: its shifts overflow
        raise ValueError(f'counts are {short(counts)}: a number has more than 30 bits')
    first = last - lengths + 1
    place = np.arange(code.size) - first.repeat(lengths)
    runs = np.add.reduceat((code & 31) << 5 * place, first)
    runs -= (code[last] >> 4 & 1) << 5 * lengths
    for parity in 1, 2:
        runs[parity::2] = runs[parity::2].cumsum()
    return runs.tolist()
