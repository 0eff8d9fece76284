"""The formats that are imported, and which of them a source is in."""

from types import ModuleType

from mmattn.errors import DataError, UsageError

from . import (
    coco,
    cvat,
    instance_masks,
    label_studio,
    labelme,
    masks,
    supervisely,
    via,
    voc,
    yolo,
)
from .records import ReadOptions, SourceSet
from .source import Source, refuse_archive

# Each module has TITLE, guess(source) and read(source, options).
FORMATS: dict[str, ModuleType] = {
    'coco': coco,
    'yolo': yolo,
    'voc': voc,
    'labelme': labelme,
    'cvat': cvat,
    'label_studio': label_studio,
    'via': via,
    'supervisely': supervisely,
    'masks': masks,
    'instance_masks': instance_masks,
}


def guess_format(source: Source) -> tuple[str, str]:
    """The format of a source, and why it looks like it.

    Raises:
        DataError: it looks like none of them; files that are packed are named.
        UsageError: it looks like several.
    """
    found = {name: reason for name, module in FORMATS.items() if (reason := module.guess(source))}
    if len(found) > 1:
        reasons = '; '.join(f'{name}, as {reason}' for name, reason in found.items())
        raise UsageError(f'{source.root} may be in several formats: {reasons}. Choose: --format.')
    if not source.files:
        raise DataError(f'{source.root} holds no file. Name another folder with --from.')
    if not found:
        for path in source.files:
            refuse_archive(path)
        damaged = next((p for p, content in source.first_json() if content is None), None)
        if damaged:
            source.json(damaged)
        raise DataError(
            f'{source.root} is in no format that is known, with {len(source.files)} files, of them '
            f'{len(source.images)} images. Name the format with --format: {", ".join(FORMATS)}.'
        )
    return next(iter(found.items()))


def read_format(name: str, source: Source, options: ReadOptions) -> SourceSet:
    """Read a source in a format of `FORMATS`; what is wrong goes to `source.problems`."""
    return FORMATS[name].read(source, options)
