"""Checks of data that cannot be checked in full: remote files, images without label maps."""

import os

from mmattn.errors import DataError

from . import image_io
from .annotation_filter import count_loaded
from .build import is_unscored
from .loading import needs_annotations


def remote_backends(leaf: dict) -> list[str]:
    """File clients of a data set, or of steps of its pipeline, other than the local disk."""
    configs = [leaf, *(step for step in leaf.get('pipeline', []) if isinstance(step, dict))]
    backends = {
        options.get('backend', 'local')
        for config in configs
        for key in ('backend_args', 'file_client_args')
        if isinstance(options := config.get(key), dict)
    }
    return sorted(str(name) for name in backends if name not in ('local', 'disk'))


def check_remote(leaf: dict, where: str, backends: list[str], masks: bool, part: bool) -> list[str]:
    """Check the list of a data set whose files are read by other file clients.

    Args:
        leaf: config of the data set.
        where: config key of its data loader.
        backends: names of the file clients.
        masks: whether masks are trained.
        part: whether it is trained together with others, so that it may hold no box.

    Returns:
        warnings, a sentence each.

    Raises:
        DataError: the list cannot be read, or is empty.
    """
    loaded = count_loaded(leaf, masks)
    name, clients = f'data set {leaf["type"]} ({where})', ', '.join(backends)
    if not loaded.images or (where.startswith('train') and not part and not loaded.boxes):
        raise DataError(
            f'{name}: the loader holds {loaded.images} of {loaded.listed} images by the file client'
            f' {clients}, and nothing to learn from or to score in them. Set data_root and '
            'ann_file.'
        )
    return [
        f'{name}: its files are read by the file client {clients}, so the check looks at none of '
        f'its {loaded.images} images.'
    ]


def reads_images_alone(leaf: dict, where: str, evaluator: dict | list | None) -> bool:
    """Whether label maps of a data set are not used: the test set of a benchmark has none."""
    return (
        not where.startswith('train')
        and is_unscored(evaluator)
        and not any(needs_annotations(step) for step in leaf.get('pipeline', []))
    )


def check_images(dataset, where: str) -> None:
    """Check the images of a data set of MMSegmentation's kind whose label maps are not used.

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
        fault = image_io.header_fault(path)
        if fault:
            raise DataError(f'{name}: {fault.text}. Replace the file.')
