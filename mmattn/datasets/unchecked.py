"""Data that no check can look at: files behind another file client, images without label maps."""

import os

from mmattn.errors import DataError

from . import annotation_filter as held
from . import image_io as files
from .loading import needs_annotations


def backends(leaf: dict) -> list[str]:
    """The file clients of a data set, or of steps of its pipeline, that are not the local disk."""
    parts = [leaf, *(step for step in leaf.get('pipeline', []) if isinstance(step, dict))]
    found = {
        options.get('backend', 'local')
        for part in parts
        for key in ('backend_args', 'file_client_args')
        if isinstance(options := part.get(key), dict)
    }
    return sorted(str(name) for name in found if name not in ('local', 'disk'))


def check_behind(leaf: dict, where: str, clients: list[str], masks: bool, part: bool) -> list[str]:
    """Check what a data set lists where its files are read by other file clients.

    Args:
        leaf: its config.
        where: the key of its data loader.
        clients: their names.
        masks: whether masks are learnt.
        part: whether it is trained on with others, so that it may hold no box.

    Returns:
        warnings, a sentence each.

    Raises:
        DataError: the list cannot be read, or there is nothing in it.
    """
    found = held.held(leaf, masks)
    name, by = f'data set {leaf["type"]} ({where})', ', '.join(clients)
    if not found.images or (where.startswith('train') and not part and not found.boxes):
        raise DataError(
            f'{name}: the loader holds {found.images} of {found.listed} images by the file client '
            f'{by}, and nothing to learn from or to score in them. Set data_root and ann_file.'
        )
    return [
        f'{name}: its files are read by the file client {by}, so the check looks at none of its '
        f'{found.images} images.'
    ]


def has_images_alone(leaf: dict) -> bool:
    """Whether the pipeline of a data set reads no annotations."""
    return not any(needs_annotations(step) for step in leaf.get('pipeline', []))


def check_images(dataset, where: str) -> None:
    """Check the images of a data set of MMSegmentation's kind whose label maps nobody reads.

    Raises:
        DataError: there is none, or one is missing or damaged.
    """
    name, remedy = f'data set {type(dataset).__name__} ({where})', f'Set {where}.dataset.data_root.'
    folder = dataset.data_prefix.get('img_path') or '.'
    if not os.path.isdir(folder):
        raise DataError(f'{name}: {folder} does not exist. {remedy}')
    if dataset.ann_file and not os.path.exists(dataset.ann_file):
        raise DataError(f'{name}: {dataset.ann_file} does not exist. Set ann_file.')
    paths = [sample['img_path'] for sample in dataset.load_data_list()]
    if not paths:
        raise DataError(f'{name}: no image *{dataset.img_suffix} below {folder}. {remedy}')
    for path in paths:
        if not os.path.isfile(path):
            raise DataError(f'{name}: {path} is missing. Get it, or correct the list of images.')
        if not os.path.getsize(path):
            raise DataError(f'{name}: {path} is empty. Replace the file.')
        fault = files.header_fault(path)
        if fault:
            raise DataError(f'{name}: {fault.text}. Replace the file.')
