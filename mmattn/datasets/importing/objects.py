"""Objects of an image in its pixels: scaled, clipped, and dropped where they are not valid."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2

from mmattn.progress import track

from ..image_io import Fault, ImageHeader, UnusableImage, image_header
from ..image_limits import remedy_for_large
from ..rle import check_rle
from . import geometry
from .problems import Problems
from .records import SourceImage, SourceObject

_TOLERANCE = 0.01  # px by which coordinates may leave the image without being reported


def check_images(
    images: list[SourceImage], problems: Problems
) -> Iterator[tuple[SourceImage, tuple[int, int]]]:
    """Yield the images that can be used, with width and height as training reads them.

    Headers are read, not pixels.
    """
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        pairs = zip(images, pool.map(_header, images))
        title = 'reading headers of images'
        for image, header in track(pairs, total=len(images), title=title):
            if isinstance(header, Fault):
                kind = 'large' if header.kind == 'large' else 'damaged image'
                text = header.text
                if kind == 'large':
                    text = f'{text}. {remedy_for_large([header.megapixels])}'.rstrip('.')
                problems.add(kind, image.path, '', text)
            elif size := _size(image, header, problems):
                yield image, size


def _header(image: SourceImage) -> ImageHeader | Fault:
    try:
        header = image_header(image.path)
    except UnusableImage as unusable:
        return unusable.fault
    if header.mode == 'F' or not cv2.haveImageReader(str(image.path)):
        text = 'training cannot read this kind of image: convert it to PNG of 8 bits'
        return Fault('kind', text)
    return header


def _size(image: SourceImage, header: ImageHeader, problems: Problems) -> tuple[int, int] | None:
    """Width and height as training reads the image; None if its annotations have another size."""
    size = header.size[::-1] if header.orientation > 4 else header.size
    annotated = image.size or size
    if annotated != size:
        text = f'is {size[0]}x{size[1]}, its annotations are for {annotated[0]}x{annotated[1]}'
        if annotated == header.size:
            text += ', its pixels without the EXIF orientation that training applies'
        problems.add('size', image.path, '', text)
        return None
    if header.orientation != 1:
        problems.add('rotated', image.path, '', f'orientation {header.orientation}')
    if image.path.is_symlink():
        problems.add('link', image.path, '', '')
    return size


def finish_objects(image: SourceImage, size: tuple[int, int], problems: Problems) -> None:
    """Replace the objects of an image by those that are valid, in pixels and inside it."""
    kept = []
    for item in image.objects:
        if image.is_relative:
            item.box = item.box and _scale(item.box, size)
            item.polygons = [_scale(polygon, size) for polygon in item.polygons]
        try:
            kind, text = _finish(image, item, size, problems)
        except ValueError as error:
            kind, text = 'invalid', str(error)
        if kind:
            problems.add(kind, image.file, item.where, text)
        if kind in ('', 'clipped'):
            kept.append(item)
    image.objects = kept


def _scale(values: Iterable[float], size: tuple[int, int]) -> list[float]:
    return [value * size[i % 2] for i, value in enumerate(values)]


def _finish(
    image: SourceImage, item: SourceObject, size: tuple[int, int], problems: Problems
) -> tuple[str, str]:
    """Make an object valid; returns the kind and text of its problem, '' for none."""
    item.polygons = [p for p in item.polygons if _is_polygon(image, item, p, problems)]
    if item.mask is not None:
        check_rle(item.mask, *size)
        item.mask = geometry.compress(item.mask)
        bounds, pixels = geometry.mask_bounds(item.mask)
        if not pixels:
            return 'empty box', 'its mask has no pixel'
        item.box = item.box or bounds
    if item.box is None:
        if not item.polygons:
            return 'short polygon', 'no polygon is left, so the object is dropped'
        item.box = geometry.bounds(item.polygons)
    x1, y1, x2, y2 = item.box
    shown = ', '.join(f'{value:g}' for value in item.box)
    if x2 <= x1 or y2 <= y1:
        return 'empty box', f'x1, y1, x2, y2 are {shown}'
    if x2 <= 0 or y2 <= 0 or x1 >= size[0] or y1 >= size[1]:
        return 'outside', f'x1, y1, x2, y2 are {shown}, the image is {size[0]}x{size[1]}'
    leaving = 0.0
    for outline in [item.box, *item.polygons]:
        inside = geometry.clip([outline], size)[0]
        leaving = max(leaving, *(abs(a - b) for a, b in zip(outline, inside)))
        outline[:] = [geometry.rounded(value) for value in inside]
    if item.polygons and not geometry.area(item.polygons):
        return 'empty box', 'its polygons have no area'
    if leaving > _TOLERANCE:
        return 'clipped', f'by {leaving:.4g} px; x1, y1, x2, y2 were {shown}'
    return '', ''


def _is_polygon(
    image: SourceImage, item: SourceObject, polygon: list[float], problems: Problems
) -> bool:
    if len(polygon) % 2:
        raise ValueError(f'a polygon has {len(polygon)} coordinates, an odd number')
    if len(polygon) < 6:
        problems.add('short polygon', image.file, item.where, f'{len(polygon) // 2} points')
    return len(polygon) >= 6
