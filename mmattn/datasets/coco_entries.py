"""Reading a COCO instance file: images, annotations and categories with all keys they need."""

import codecs
import json
import sys
from collections import Counter
from pathlib import Path
from reprlib import repr as show
from typing import Any

from mmattn.errors import DataError

from .fix_commands import sort_categories_command
from .image_limits import max_megapixels

KEYS = {
    'images': {'id', 'file_name', 'width', 'height'},
    'annotations': {'id', 'image_id', 'category_id', 'bbox', 'area'},
    'categories': {'id', 'name'},
}
_IDS = dict(image_id='images', category_id='categories')  # where ids are defined
_INTEGERS = {'id', 'image_id', 'category_id', 'width', 'height'}


def parse_json(data: bytes, name: str) -> Any:
    """Parse the content of a JSON file; `name` is for the message about a large one.

    Raises:
        DataError: it is not valid JSON.
    """
    data = data.removeprefix(codecs.BOM_UTF8)  # which Windows editors write
    if len(data) > 5e7:
        print(f'reading and checking {name}, {len(data) / 1e6:.0f} MB', file=sys.stderr, flush=True)
    try:
        return json.loads(data.decode())
    except json.JSONDecodeError as error:
        position = len(error.doc[: error.pos].encode())
        raise DataError(f'not valid JSON at byte {position}: {error.msg}. Get it again.') from error
    except (ValueError, RecursionError) as error:
        raise DataError(f'not valid JSON: {error}. Get it again.') from error


def parse_coco(data: bytes, name: str) -> dict:
    """Parse the content of a COCO file, see `parse_json`.

    Raises:
        DataError: it is not valid JSON, or no object.
    """
    coco = parse_json(data, name)
    if type(coco) is not dict:
        raise DataError(f'its top level is {show(coco)}, expected an object of lists.')
    return coco


def check_not_panoptic(coco: dict) -> None:
    """Refuse a file of panoptic segments, which has other keys.

    Raises:
        DataError: names the keys to set.
    """
    annotations = coco.get('annotations')
    first = annotations[0] if type(annotations) is list and annotations else None
    if type(first) is dict and 'segments_info' in first:
        raise DataError(
            "its annotations have 'segments_info', as panoptic ones do, but the data set reads "
            'instances. Set ann_file to the file of instances, or type to CocoPanopticDataset '
            'with data_prefix.seg.'
        )


def read_entries(coco: dict, kind: str) -> list[dict]:
    """The list of one kind of entries, checked: required keys, integer values, unique ids.

    All ids of a kind may be strings, which mmdet trains on.

    Args:
        coco: content of the file.
        kind: key of `KEYS`.

    Raises:
        DataError: names the entry and the key.
    """
    entries, keys = coco.get(kind), KEYS[kind]
    string_keys = {
        k for k in ('id', *_IDS) if k in keys and _ids_are_strings(coco.get(_IDS.get(k, kind)))
    }
    integers = keys & _INTEGERS
    if type(entries) is not list:
        reason = f'is {show(entries)}, expected a list' if kind in coco else 'is missing'
        raise DataError(f'{kind!r} {reason}. Is this a file of COCO instances?')
    for i, entry in enumerate(entries):
        if type(entry) is not dict:
            raise DataError(f'{kind}[{i}] is {show(entry)}, expected an object.')
        if not keys <= entry.keys():
            ident = f' (id {show(entry["id"])})' if 'id' in entry else ''
            raise DataError(f'{kind}[{i}]{ident}: missing {min(keys - entry.keys())!r}. Add it.')
        for key in integers:
            value = entry[key]
            if key in string_keys and type(value) is str:
                continue
            # pycocotools keeps ids as float64
            if type(value) is not int or abs(value) >= 2**53:
                raise DataError(
                    f'{kind}[{i}] (id {show(entry["id"])}): {key} is {show(value)}, expected an '
                    'integer.'
                )
    counts = Counter(entry['id'] for entry in entries)
    if len(counts) < len(entries):
        ident, count = counts.most_common(1)[0]
        raise DataError(f'{kind}: id {ident} occurs {count} times. Give each its own.')
    return entries


def _ids_are_strings(entries) -> bool:
    """Whether the id of each entry is a string."""
    return (
        type(entries) is list
        and bool(entries)
        and all(type(entry) is dict and type(entry.get('id')) is str for entry in entries)
    )


def chosen_categories(
    categories: list[dict], classes: tuple[str, ...] | None, file: Path
) -> set[int]:
    """Ids of the categories that are classes of the config.

    mmdet numbers classes in the order of the file, whatever the order of the config is.

    Args:
        categories: entries of the file.
        classes: class names of the config; None takes all.
        file: the file, for the command that reorders it.

    Raises:
        DataError: a class is not in the file, there twice, or in another order.
    """
    names = [c['name'] for c in categories]
    wrong = next((c for c in categories if type(c['name']) is not str), None)
    if wrong:
        raise DataError(
            f'category {wrong["id"]}: name is {show(wrong["name"])}, expected a string.'
        )
    classes = tuple(names) if classes is None else classes
    duplicates = [name for name, count in Counter(names).items() if count > 1 and name in classes]
    if duplicates:
        raise DataError(
            f'category name {duplicates[0]!r} occurs {names.count(duplicates[0])} times. Rename.'
        )
    absent = tuple(name for name in classes if name not in names)
    if absent:
        raise DataError(
            f'classes {absent} not in file; file has {tuple(names)}. Correct metainfo.classes.'
        )
    order = tuple(name for name in names if name in classes)
    if order != classes:
        raise DataError(
            f'classes {classes} of the config stand in the order {order} in the file, which mmdet '
            'follows: every box would get a wrong name. Put the categories of the file in the '
            f'order of the config: {sort_categories_command(file, classes)}'
        )
    return {c['id'] for c in categories if c['name'] in classes}


def check_image_entries(images: list[dict], warnings: list[str]) -> None:
    """Refuse entries of images without a file name, or with a size out of range.

    Args:
        images: entries of the file.
        warnings: a file name that is used twice is appended to it.

    Raises:
        DataError: names the image.
    """
    users: dict[str, list[int]] = {}
    limit = max_megapixels()
    for image in images:
        ident, name, width, height = (image[k] for k in ('id', 'file_name', 'width', 'height'))
        if type(name) is not str or not name:
            raise DataError(f'image {ident}: file_name is {show(name)}, expected a string.')
        if min(width, height) < 1 or width * height > limit * 1e6:
            needed = -(-width * height // 10**6)
            more = (
                f' Pass --max-megapixels {needed} if it is so large.'
                if min(width, height) > 0
                else ''
            )
            raise DataError(
                f'image {ident}: size {width}x{height}, allowed 1x1 to {limit:g} megapixels.{more}'
            )
        users.setdefault(name, []).append(ident)
    if len(users) < len(images):
        name, ids = next((name, ids) for name, ids in users.items() if len(ids) > 1)
        warnings.append(f'file_name {show(name)} is used by images {", ".join(map(str, ids))}.')
