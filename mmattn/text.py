"""Names in messages: lists of them, and the nearest to one that is wrong."""

import difflib
from collections.abc import Iterable


def some(items: Iterable, limit: int = 5, unit: str = '') -> str:
    """The first `limit` items of a list: 'a, b, c and 7 more'.

    Args:
        items: names, or anything that `str` shows well.
        limit: how many are shown.
        unit: noun after 'more', such as ' files' for 'a, b and 7 more files'.
    """
    names = [str(item) for item in items]
    more = f' and {len(names) - limit} more{unit}' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: what may have been meant."""
    known = list(known)
    same = [k for k in known if k.casefold() == name.casefold()]
    near = same or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f' Did you mean {near[0]}?' if near else ''
