"""Results of tools/infer.py, whose ids are its own: given those of the annotations, by name."""

import json
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from mmattn.errors import DataError


def by_name(
    results: Any, path: str | Path, truth: Any, annotations: str | Path
) -> tuple[Any, list[str]]:
    """Results with the ids of the annotations, if `images.json` beside them says what theirs mean.

    An image is that whose `file_name` its path ends with; a category that of the same name.
    Results of other tools, and what is no list of results, come back as they are.

    Args:
        results, truth: the content of the two files.
        path, annotations: the files.

    Returns:
        the results, and what to say of them, a sentence each.

    Raises:
        DataError: an image or a category cannot be paired; names it.
    """
    beside = Path(path).with_name('images.json')
    about = _about(beside, annotations)
    kinds = 'images', 'categories'
    if about is None or not all(isinstance(truth, dict) and truth.get(kind) for kind in kinds):
        return results, []
    own = {image['id'] for image in about['images']}
    if not isinstance(results, list) or not all(_is_of(row, own) for row in results):
        return results, []
    images, alone, unseen = _images(about, beside, truth, annotations)
    categories = _categories(about, beside, truth, annotations)
    made = [
        dict(
            row,
            image_id=images[row['image_id']],
            category_id=categories.get(row['category_id'], row['category_id']),
        )
        for row in results
        if row['image_id'] in images
    ]
    says = [f'images and categories are paired by name, as {beside} has them.']
    if alone:
        says.append(
            f'warning: {alone} images of {beside} are not in {annotations}: their results are left '
            'out.'
        )
    if unseen:
        says.append(
            f'warning: {unseen} images of {annotations} are not in {beside}: their objects count '
            'as missed.'
        )
    return made, says


def _about(path: Path, annotations: str | Path) -> dict | None:
    """What infer.py says of its ids; None if that is no such file."""
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


def _is_of(row: Any, images: set[int]) -> bool:
    keys = 'image_id', 'category_id'
    return (
        isinstance(row, dict)
        and all(type(row.get(key)) is int for key in keys)
        and row['image_id'] in images
    )


def _images(
    about: dict, beside: Path, truth: dict, annotations: str | Path
) -> tuple[dict[int, int], int, int]:
    """Id in the results -> in the annotations; how many of each have no other."""
    named = defaultdict(list)
    for image in truth['images']:
        if isinstance(image, dict) and isinstance(image.get('file_name'), str):
            named[_parts(image['file_name'])[-1:]].append(image)
    found: dict[int, int] = {}
    taken: dict[int, str] = {}
    for image in about['images']:
        parts = _parts(image['file_name'])
        fits = [one for one in named[parts[-1:]] if _ends(parts, _parts(one['file_name']))]
        if not fits:
            continue
        longest = max(len(_parts(one['file_name'])) for one in fits)
        fits = [one for one in fits if len(_parts(one['file_name'])) == longest]
        if len(fits) > 1:
            raise DataError(
                f'{image["file_name"]} in {beside} could be images {fits[0]["id"]} and '
                f'{fits[1]["id"]} of {annotations}, both named {fits[0]["file_name"]}. Keep one.'
            )
        ident = fits[0]['id']
        if ident in taken:
            raise DataError(
                f'{taken[ident]} and {image["file_name"]} in {beside} could both be image {ident} '
                f'of {annotations}, {fits[0]["file_name"]}. Infer the folder of the annotated '
                'images alone.'
            )
        _check_size(image, fits[0], beside, annotations)
        found[image['id']], taken[ident] = ident, image['file_name']
    if not found:
        first, other = about['images'][0]['file_name'], truth['images'][0].get('file_name')
        raise DataError(
            f'images of {beside}: none is in {annotations}, e.g. {first}, where names are like '
            f'{other}. Infer the folder that these names start from.'
        )
    return found, len(about['images']) - len(found), len(truth['images']) - len(found)


def _categories(about: dict, beside: Path, truth: dict, annotations: str | Path) -> dict:
    known = {c.get('name'): c.get('id') for c in truth['categories'] if isinstance(c, dict)}
    absent = [c['name'] for c in about['categories'] if c['name'] not in known]
    if absent:
        raise DataError(
            f'category {absent[0]!r} of {beside} is not in {annotations}, which has '
            f'{", ".join(map(str, known))}. Name the annotations of the same categories.'
        )
    return {c['id']: known[c['name']] for c in about['categories']}


def _check_size(image: dict, other: dict, beside: Path, annotations: str | Path) -> None:
    sizes = [tuple(one.get(side) for side in ('width', 'height')) for one in (image, other)]
    if None not in sizes[0] + sizes[1] and sizes[0] != sizes[1]:
        texts = ['x'.join(map(str, size)) for size in sizes]
        raise DataError(
            f'{image["file_name"]} is {texts[0]} in {beside}, but {other["file_name"]} in '
            f'{annotations} is {texts[1]}. Infer the images that were annotated.'
        )


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace('\\', '/')).parts


def _ends(parts: tuple[str, ...], with_parts: tuple[str, ...]) -> bool:
    """Whether a path ends with another, or is its end."""
    count = min(len(parts), len(with_parts))
    return parts[-count:] == with_parts[-count:]
