"""A folder of images and a folder of masks: class ids, a palette, or colours with a table.

A mask has the path of its image, but for a folder such as `masks` instead of `images`, the suffix,
and what follows the name in all masks, such as `_mask`.
"""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from mmattn.errors import DataError

from ..image_io import open_image
from .class_table import find_table
from .records import IGNORED, ReadOptions, SourceImage, SourceSet
from .source import Source

TITLE = 'folder of masks'
_MASK_FOLDERS = (
    'masks', 'mask', 'labels', 'label', 'annotations', 'annotation', 'segmentationclass', 'gt',
    'groundtruth', 'ground_truth', 'gtfine', 'segmentation', 'segmentations', 'labelmaps', 'seg',
)  # fmt: skip
_IMAGE_FOLDERS = ('images', 'image', 'imgs', 'img', 'jpegimages', 'leftimg8bit', 'photos', 'rgb')
_MASK_SUFFIXES = ('.png', '.bmp', '.tif', '.tiff', '.jpg', '.jpeg')
_SAMPLE = 20  # masks that are looked at before the others, and pairs by which a suffix is chosen
_VALUES = 1 << 16  # that a mask of 16 bits can hold


def guess(source: Source) -> str | None:
    """Why the source looks like this format; None if it does not."""
    pairs, _ = _pairs(source)
    for image, mask in pairs[:1]:
        return f'{mask.relative_to(source.root)} is named like {image.relative_to(source.root)}'
    return None


def read(source: Source, options: ReadOptions) -> SourceSet:
    """Pair images and masks; masks are decoded when they are written."""
    pairs, masks = _pairs(source)
    images = [
        SourceImage(image, mask, split=source.split_of(image), labels=mask) for image, mask in pairs
    ]
    paired = {mask for _, mask in pairs}
    for mask in masks:
        if mask not in paired:
            source.problems.add('no image', mask, '', 'no image is named like it')
    found = SourceSet(images, mask_files=set(masks))
    if not images:
        return found
    names, colours = options.classes, options.colours
    if names is None:
        names, colours = find_table(source)
    modes = {_mode(mask) for _, mask in pairs[:_SAMPLE]}
    if modes & {'RGB', 'RGBA'} or (colours and modes == {'P'}):
        _use_colours(source, found, colours, pairs)
    else:
        _use_ids(found, tuple(names), options.ignore_labels, [mask for _, mask in pairs])
    return found


def _pairs(source: Source) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Images with their masks, and all masks."""
    images: dict[tuple[str, ...], dict[str, Path]] = {}
    masks: dict[tuple[str, ...], dict[str, Path]] = {}
    for name, path in source.images.items():
        *folders, _ = name.split('/')
        is_mask = any(_is_mask_folder(folder) for folder in folders)
        if is_mask and path.suffix.lower() not in _MASK_SUFFIXES:
            continue
        place = tuple(filter(None, map(_place, folders)))
        (masks if is_mask else images).setdefault(place, {})[path.stem] = path
    ending, pairs = _ending(images, masks), []
    for place, stems in images.items():
        for stem, image in stems.items():
            mask = masks.get(place, {}).get(stem + ending)
            pairs += [(image, mask)] if mask else []
    return sorted(pairs), sorted(path for stems in masks.values() for path in stems.values())


def _is_mask_folder(name: str) -> bool:
    return name.lower() in _MASK_FOLDERS or name.lower().endswith('annot')


def _place(folder: str) -> str:
    """The name of a folder as images and masks have it in common; '' for one of them alone."""
    lower = folder.lower()
    if lower in _MASK_FOLDERS + _IMAGE_FOLDERS:
        return ''
    return lower.removesuffix('annot')


def _ending(images: dict, masks: dict) -> str:
    """What follows the name of the image in the name of most masks."""
    counts: Counter = Counter()
    for place, stems in images.items():
        names = sorted(masks.get(place, ()))
        for stem in list(stems)[:_SAMPLE]:
            counts.update(name[len(stem) :] for name in names if name.startswith(stem))
    return min(counts, key=lambda ending: (-counts[ending], len(ending)), default='')


def _mode(mask: Path) -> str:
    with open_image(mask, 'mask') as image:
        if image.format == 'JPEG':
            raise DataError(
                f'mask {mask} is a JPEG, whose compression changes ids and colours. Get the masks '
                'as PNG.'
            )
        return image.mode


def _use_colours(
    source: Source,
    found: SourceSet,
    colours: dict[str, tuple[int, int, int]],
    pairs: list[tuple[Path, Path]],
) -> None:
    """Read masks whose colours are those of a table.

    Raises:
        DataError: there is no table; the colours found are listed.
    """
    if not colours:
        counts: Counter = Counter()
        for _, mask in pairs[:_SAMPLE]:
            values, pixels = np.unique(_packed(mask), return_counts=True)
            counts.update(dict(zip(values.tolist(), pixels.tolist())))
        lines = [f'  {colour_text(v)}  ({n} px)' for v, n in counts.most_common(40)]
        raise DataError(
            f'the masks of {source.root} hold colours, and no table names them. Write a file with '
            'a line "RED GREEN BLUE NAME" for each, and pass it with --classes. Found:',
            lines,
        )
    found.classes = [name for name in colours if not is_void(name)]
    found.colours = {name: colours[name] for name in found.classes}
    table = np.full(1 << 24, -1, np.int16)
    for name, (red, green, blue) in colours.items():
        index = IGNORED if is_void(name) else found.classes.index(name)
        table[red << 16 | green << 8 | blue] = index
    found.read_labels, found.has_colours = partial(_read_colours, table=table), True


def colour_text(packed: int) -> str:
    """Red, green and blue of a packed colour."""
    return f'{packed >> 16} {packed >> 8 & 255} {packed & 255}'


def is_void(name: str) -> bool:
    """Whether a class of a table stands for pixels that are ignored."""
    return name.lower() in ('void', 'ignore', 'ignored', 'unlabelled', 'unlabeled')


def _packed(mask: Path) -> np.ndarray:
    """Colours of a mask (H, W) as red * 65536 + green * 256 + blue."""
    with open_image(mask, 'mask') as image:
        rgb = np.asarray(image.convert('RGB')).astype(np.int32)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


def _read_colours(mask: Path, table: np.ndarray) -> np.ndarray:
    packed = _packed(mask)
    labels = table[packed].astype(np.int32)
    return np.where(labels < 0, -1 - packed, labels)


def _use_ids(
    found: SourceSet, names: tuple[str, ...], ignored: tuple[int, ...], masks: list[Path]
) -> None:
    """Read masks whose values are class ids; those of 0 and 255 alone have two classes."""
    found.has_class_names = bool(names)
    table = np.full(_VALUES, -1, np.int32)
    ids = [i for i in range(IGNORED) if i not in ignored]
    ids = ids[: len(names)] if names else ids
    table[ids] = np.arange(len(ids))
    table[[IGNORED, _VALUES - 1, *ignored]] = IGNORED
    sample = [_values(mask) for mask in masks[:_SAMPLE]]
    if {int(v) for values in sample for v in np.unique(values)} == {0, IGNORED}:
        table[1:] = -1
        table[IGNORED] = 1
    found.classes = list(names)
    found.read_labels = partial(_read_ids, table=table)
    found.colours = _palette(masks[0], ids, names)


def _palette(mask: Path, ids: list[int], names: tuple[str, ...]) -> dict:
    """Colours of classes in the palette of a mask; empty if it has none."""
    with open_image(mask, 'mask') as image:
        palette = image.getpalette() if image.mode == 'P' else None
    palette = palette or []
    colours = {name: tuple(palette[3 * i : 3 * i + 3]) for name, i in zip(names, ids)}
    return {name: colour for name, colour in colours.items() if len(colour) == 3}


def _values(mask: Path) -> np.ndarray:
    with open_image(mask, 'mask') as image:
        if image.mode not in ('L', 'P', '1', 'I', 'I;16', 'I;16B'):
            raise DataError(f'mask {mask} has mode {image.mode}, not one value per pixel.')
        return np.asarray(image).astype(np.int64)


def _read_ids(mask: Path, table: np.ndarray) -> np.ndarray:
    values = _values(mask)
    is_value = (values >= 0) & (values < _VALUES)
    labels = np.where(is_value, table[np.where(is_value, values, 0)], -1)
    return np.where(labels < 0, -1 - values, labels)
