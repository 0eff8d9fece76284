"""Lists of names in messages."""

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
