"""Names in messages: lists of them, and the nearest to one that is wrong."""

import difflib
from collections.abc import Iterable


def some(items: Iterable, limit: int = 5, unit: str = '') -> str:
    """The first items of a list and the number of others: 'a, b, c and 7 more'.

    Args:
        items: names, or other objects to be shown by `str`.
        limit: number of items to show.
        unit: text after 'more', such as ' files' for 'a, b and 7 more files'.
    """
    names = [str(item) for item in items]
    more = f' and {len(names) - limit} more{unit}' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: ' Did you mean X?', or '' if none is similar.

    Args:
        name: the unknown name.
        known: names that exist.
    """
    known = list(known)
    same = [k for k in known if k.casefold() == name.casefold()]
    similar = same or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f' Did you mean {similar[0]}?' if similar else ''
