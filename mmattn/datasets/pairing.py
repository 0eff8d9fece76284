"""Why images and label maps do not come in pairs, and what to do: suffixes, lists, upper case."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmattn.errors import UsageError, printable

from . import fix_commands as mending

if TYPE_CHECKING:
    from .label_maps import LabelMaps

_NAMED = 10  # files in a list of names
_PICTURES = ('.jpg', '.jpeg', '.png', '.tif', '.tiff', '.bmp', '.webp')


def check_suffixes(name: str, dataset) -> None:
    """Refuse several suffixes: MMSegmentation cuts off as many letters as there are suffixes.

    Raises:
        UsageError: says how to write it.
    """
    for key in 'img_suffix', 'seg_map_suffix':
        value = getattr(dataset, key)
        if not isinstance(value, str):
            parts = ', '.join(f'dict(..., {key}={one!r})' for one in value)
            raise UsageError(
                f'{name}: {key}={value!r}: a data set has one suffix. Write '
                f"dict(type='ConcatDataset', datasets=[{parts}])."
            )


def chosen(samples: list, indices: int | Sequence[int]) -> list:
    """Those of the samples that `indices` of a data set keeps, as mmengine counts them."""
    if isinstance(indices, int):
        return samples[:indices] if indices >= 0 else samples[indices:]
    return [samples[i] for i in indices]


def other_suffix(maps: 'LabelMaps') -> str:
    """The suffix that the images have, as a remedy; empty where there are none of any."""
    counts: dict[str, int] = {}
    for _, _, names in os.walk(maps.folder):
        for name in names:
            suffix = Path(name).suffix
            if suffix.lower() in _PICTURES:
                counts[suffix] = counts.get(suffix, 0) + 1
    if not counts:
        return ''
    best = max(counts, key=counts.get)
    return f'There are {counts[best]} *{best}: set img_suffix={best!r}.'


def remedy(maps: 'LabelMaps', kind: str) -> str:
    """What to do about images that do not exist or have no label map."""
    if kind == 'do not exist':
        known = _of_list(maps)
    elif not maps.image_suffix and not maps.list:  # a name is nothing but suffix
        known = other_suffix(maps)
    else:
        lost = [label for image, label in maps.lost if os.path.isfile(image)]
        suffix = _suffix_of_all(lost, maps.suffix)
        known = f'Set seg_map_suffix={suffix!r}.' if suffix is not None else ''
    if known:
        return known
    if len(maps.lost) == maps.count or 'prepare_data.py' in maps.remedy:
        return maps.remedy
    if kind == 'do not exist':
        return f'Get them, or take their names out of {maps.list}.'
    rest = f'take their names out of {maps.list}' if maps.listed else (
        'name the others in a file, one a line without suffix, and set ann_file to it'
    )  # fmt: skip
    return f'Get them, or {rest}.'


def _of_list(maps: 'LabelMaps') -> str:
    """What is wrong with the names in a list of images."""
    lines = Path(maps.list).read_text(encoding='utf-8').splitlines()
    if lines and lines[0].startswith('\ufeff'):
        mend = mending.without_mark(maps.list)
        return f'{maps.list} starts with a byte-order mark. Take it off: {mend}'
    empty = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
    if empty:
        return f'Line {empty} of {maps.list} is empty: remove it.'
    lost = [image for image, _ in maps.lost if not os.path.isfile(image)]
    end = maps.image_suffix
    if end and all(path.endswith(end) and os.path.isfile(path[: -len(end)]) for path in lost):
        return f'{maps.list} lists them with {end!r}: write the names without suffix.'
    suffix = _suffix_of_all(lost, end)
    return f'Set img_suffix={suffix!r}.' if suffix is not None else ''


def _suffix_of_all(paths: list[str], suffix: str) -> str | None:
    """The one suffix with which a file exists instead of each path that ends with `suffix`."""
    stems = [path[: len(path) - len(suffix)] for path in paths if path.endswith(suffix)]
    if not stems or len(stems) < len(paths) or any(not os.path.basename(s) for s in stems):
        return None
    folder, start = os.path.split(stems[0])
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return None
    others = [name[len(start) :] for name in names if name.startswith(start)]
    fitting = [o for o in others if o and all(os.path.isfile(stem + o) for stem in stems)]
    return min(fitting, key=len) if fitting else None


def lonely(maps: 'LabelMaps') -> list[str]:
    """A warning if label maps below the folder belong to no image."""
    known = {os.path.normpath(label) for _, label in maps.pairs}
    found = [
        path
        for folder, _, names in os.walk(maps.label_folder)
        for name in names
        if name.endswith(maps.suffix)
        and (path := os.path.normpath(os.path.join(folder, name))) not in known
    ]
    if not found:
        return []
    stems = [
        os.path.join(maps.folder, os.path.relpath(p, maps.label_folder)[: -len(maps.suffix)])
        for p in found
        if maps.suffix
    ]
    suffixes = [*_PICTURES, *map(str.upper, _PICTURES)]
    ends = [end for stem in stems for end in suffixes if os.path.isfile(stem + end)]
    more = ''
    if ends:
        best = max(set(ends), key=ends.count)
        more = (
            f' {ends.count(best)} have an image *{best}, which img_suffix={maps.image_suffix!r} '
            f'leaves out. Rename those, or add a data set with img_suffix={best!r}.'
        )
    what = f'{len(found)} label maps belong to no image of {maps.folder}'
    return [f'{what}: {some(sorted(found))}.{more}']


def some(names: list[str]) -> str:
    """The first names of a list."""
    more = f' and {len(names) - _NAMED} more' if names[_NAMED:] else ''
    return printable(', '.join(names[:_NAMED])) + more
