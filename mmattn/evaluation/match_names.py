"""Give results of tools/infer.py, which has its own ids, the ids of the annotations, by name."""

import json
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from mmattn.errors import DataError


def match_by_name(
    results: Any, path: str | Path, truth: Any, annotations: str | Path
) -> tuple[Any, list[str]]:
    """Replace the ids of results by those of the annotations, if `images.json` has their names.

    Images match if the path of the result ends with the `file_name` of the annotations, categories
    if their names are equal. Results of other tools, and invalid results, are returned unchanged.

    Args:
        results: content of the results file.
        path: results file, next to which `images.json` may be.
        truth: content of the annotation file.
        annotations: annotation file.

    Returns:
        results, and messages, a sentence each.

    Raises:
        DataError: names an image or a category that cannot be matched.
    """
    names_file = Path(path).with_name('images.json')
    names = _read_names(names_file, annotations)
    kinds = 'images', 'categories'
    if names is None or not all(isinstance(truth, dict) and truth.get(kind) for kind in kinds):
        return results, []
    image_ids = {image['id'] for image in names['images']}
    if not isinstance(results, list) or not all(_is_known(entry, image_ids) for entry in results):
        return results, []
    images, without_truth, without_result = _match_images(names, names_file, truth, annotations)
    categories = _match_categories(names, names_file, truth, annotations)
    matched = [
        dict(
            entry,
            image_id=images[entry['image_id']],
            category_id=categories.get(entry['category_id'], entry['category_id']),
        )
        for entry in results
        if entry['image_id'] in images
    ]
    messages = [f'images and categories are paired by name, as {names_file} has them.']
    if without_truth:
        messages.append(
            f'warning: {without_truth} images of {names_file} are not in {annotations}: their '
            'results are left out.'
        )
    if without_result:
        messages.append(
            f'warning: {without_result} images of {annotations} are not in {names_file}: their '
            'objects count as missed.'
        )
    return matched, messages


def _read_names(path: Path, annotations: str | Path) -> dict | None:
    """Content of the `images.json` of tools/infer.py; None if it is no such file."""
    if not path.is_file() or path.resolve() == Path(annotations).resolve():
        return None
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, OSError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get('annotations') != []:
        return None
    keys = dict(images='file_name', categories='name')
    for kind, key in keys.items():
        items = content.get(kind)
        if not isinstance(items, list) or not items:
            return None
        if not all(
            isinstance(i, dict) and 'id' in i and isinstance(i.get(key), str) for i in items
        ):
            return None
    return content


def _is_known(entry: Any, image_ids: set[int]) -> bool:
    """Whether a result has integer ids, and that of an image of tools/infer.py."""
    keys = 'image_id', 'category_id'
    return (
        isinstance(entry, dict)
        and all(type(entry.get(key)) is int for key in keys)
        and entry['image_id'] in image_ids
    )


def _match_images(
    names: dict, names_file: Path, truth: dict, annotations: str | Path
) -> tuple[dict[int, int], int, int]:
    """Id in the results -> id in the annotations; numbers of images without a match in either."""
    by_name = defaultdict(list)
    for image in truth['images']:
        if isinstance(image, dict) and isinstance(image.get('file_name'), str):
            by_name[_parts(image['file_name'])[-1:]].append(image)
    ids: dict[int, int] = {}
    taken: dict[int, str] = {}
    for image in names['images']:
        parts = _parts(image['file_name'])
        matches = [
            candidate
            for candidate in by_name[parts[-1:]]
            if _same_end(parts, _parts(candidate['file_name']))
        ]
        if not matches:
            continue
        longest = max(len(_parts(match['file_name'])) for match in matches)
        matches = [match for match in matches if len(_parts(match['file_name'])) == longest]
        if len(matches) > 1:
            raise DataError(
                f'{image["file_name"]} in {names_file} could be images {matches[0]["id"]} and '
                f'{matches[1]["id"]} of {annotations}, both named {matches[0]["file_name"]}. Keep '
                'one.'
            )
        ident = matches[0]['id']
        if ident in taken:
            raise DataError(
                f'{taken[ident]} and {image["file_name"]} in {names_file} could both be image '
                f'{ident} of {annotations}, {matches[0]["file_name"]}. Infer the folder of the '
                'annotated images alone.'
            )
        _check_size(image, matches[0], names_file, annotations)
        ids[image['id']], taken[ident] = ident, image['file_name']
    if not ids:
        first, other = names['images'][0]['file_name'], truth['images'][0].get('file_name')
        raise DataError(
            f'images of {names_file}: none is in {annotations}, e.g. {first}, where names are like '
            f'{other}. Infer the folder that these names start from.'
        )
    return ids, len(names['images']) - len(ids), len(truth['images']) - len(ids)


def _match_categories(names: dict, names_file: Path, truth: dict, annotations: str | Path) -> dict:
    category_ids = {c.get('name'): c.get('id') for c in truth['categories'] if isinstance(c, dict)}
    absent = [c['name'] for c in names['categories'] if c['name'] not in category_ids]
    if absent:
        raise DataError(
            f'category {absent[0]!r} of {names_file} is not in {annotations}, which has '
            f'{", ".join(map(str, category_ids))}. Name the annotations of the same categories.'
        )
    return {c['id']: category_ids[c['name']] for c in names['categories']}


def _check_size(image: dict, other: dict, names_file: Path, annotations: str | Path) -> None:
    sizes = [tuple(entry.get(side) for side in ('width', 'height')) for entry in (image, other)]
    if None not in sizes[0] + sizes[1] and sizes[0] != sizes[1]:
        texts = ['x'.join(map(str, size)) for size in sizes]
        raise DataError(
            f'{image["file_name"]} is {texts[0]} in {names_file}, but {other["file_name"]} in '
            f'{annotations} is {texts[1]}. Infer the images that were annotated.'
        )


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace('\\', '/')).parts


def _same_end(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Whether one of two paths ends with the other."""
    count = min(len(first), len(second))
    return first[-count:] == second[-count:]
