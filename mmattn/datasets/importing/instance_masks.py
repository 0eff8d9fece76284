"""Binary masks of single objects: `ID/images/ID.png` and `ID/masks/*.png`, as DSB 2018 has them.

In `ID/masks/CLASS/*.png` the folder names the class; otherwise there is one class.
"""

from pathlib import Path

from mmattn.progress import track

from . import geometry
from .images import mask_pixels
from .records import ReadOptions, SourceImage, SourceObject, SourceSet
from .source import Source

TITLE = 'binary masks of instances'
_CLASS = 'object'  # where nothing names it


def guess(source: Source) -> str | None:
    """Why the source looks like this format; None if it does not."""
    for image, masks in _samples(source).items():
        folder = masks[0].parent.relative_to(source.root)
        return f'{folder} has the masks of {image.relative_to(source.root)} alone'
    return None


def _samples(source: Source) -> dict[Path, list[Path]]:
    """Each image that is alone in a folder `images`, and the masks in the folder next to it."""
    images: dict[Path, list[Path]] = {}
    masks: dict[Path, list[Path]] = {}
    for path in source.images.values():
        if path.parent.name == 'images':
            images.setdefault(path.parent.parent, []).append(path)
        elif path.parent.name == 'masks':
            masks.setdefault(path.parent.parent, []).append(path)
        elif path.parent.parent.name == 'masks':
            masks.setdefault(path.parent.parent.parent, []).append(path)
    found = {}
    for folder, paths in images.items():
        named_alike = {p.stem for p in masks.get(folder, ())} & {p.stem for p in paths}
        if len(paths) == 1 and folder in masks and not named_alike:
            found[paths[0]] = masks[folder]
    return found


def read(source: Source, options: ReadOptions) -> SourceSet:
    """Read every mask; each is an object."""
    samples = _samples(source)
    single = options.classes[0] if options.classes and len(options.classes) == 1 else _CLASS
    found = SourceSet([])
    title = f'reading masks of {source.root}'
    for image, masks in track(samples.items(), total=len(samples), title=title):
        entry = SourceImage(image, image.parent.parent, split=source.split_of(image.parent))
        for mask in masks:
            try:
                pixels = mask_pixels(mask, mask)
            except ValueError as error:
                source.problems.add('invalid', mask, '', str(error))
                continue
            size = pixels.shape[1], pixels.shape[0]
            if entry.size not in (None, size):
                source.problems.add('size', mask, '', f'is {size[0]}x{size[1]}, others are not')
                continue
            entry.size = size
            name = mask.parent.name if mask.parent.name != 'masks' else single
            entry.objects.append(SourceObject(name, mask.name, mask=geometry.encode(pixels)))
        found.images.append(entry)
        found.mask_files.update(masks)
    return found
