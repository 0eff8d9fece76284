"""The images of train, val and test: as the source has them, or drawn at random."""

import random
import re
from collections.abc import Callable

from mmattn.errors import DataError, UsageError

from .problems import Problems
from .records import SPLITS, SourceImage

_DEFAULT = (80, 10, 10)


def parse_shares(text: str) -> tuple[int, int, int]:
    """Per cent of train, val and test from a text such as '80/10/10' or '80/20'.

    Raises:
        UsageError: they are no whole numbers that add up to 100.
    """
    is_list = re.fullmatch(r'\d+(/\d+){1,2}', text)
    shares = [int(part) for part in text.split('/')] if is_list else []
    if not shares or sum(shares) != 100 or shares[0] in (0, 100):
        raise UsageError(
            f'--split {text}: write per cent of train, val and test that add up to 100, such as '
            '80/10/10.'
        )
    return (*shares, 0)[:3]


def assign_splits(
    images: list[SourceImage],
    shares: tuple[int, int, int] | None,
    seed: int,
    problems: Problems,
    name_of: Callable[[SourceImage], str],
) -> tuple[dict[str, list[SourceImage]], str]:
    """Images by split, sorted by name, and where the splits come from, in words.

    Args:
        images: all images.
        shares: per cent of train, val and test, drawn at random; None to keep the splits of the
            source where it has train and another one, and to draw 80, 10 and 10 per cent
            otherwise.
        seed: seed for the drawing.
        problems: images that the source has in no split are added to it.
        name_of: name of an image, by which images are sorted.

    Raises:
        DataError: there are too few images.
    """
    images = sorted(images, key=name_of)
    given = {image.split for image in images} - {None}
    if shares is None and 'train' in given and len(given) > 1:
        for image in images:
            if image.split is None:
                problems.add('not listed', image.path, '', 'it is in no split of the source')
        found = {s: [i for i in images if i.split == s] for s in SPLITS}
        return {s: part for s, part in found.items() if part}, 'splits of the source'
    shares = shares or _DEFAULT
    if len(images) < sum(share > 0 for share in shares):
        raise DataError(f'{len(images)} images are too few to split. Name the rest with --from.')
    drawn = list(images)
    random.Random(seed).shuffle(drawn)
    found, start = {}, 0
    for split, share in (('test', shares[2]), ('val', shares[1])):
        count = max(1, round(len(images) * share / 100)) if share else 0
        found[split] = drawn[start : start + count]
        start += count
    found['train'] = drawn[start:]
    if not found['train']:
        raise DataError(f'{len(images)} images leave none to train on. Name more with --from.')
    text = f'splits drawn at random, {"/".join(map(str, shares))} with seed {seed}'
    return {s: sorted(found[s], key=name_of) for s in SPLITS if found[s]}, text
