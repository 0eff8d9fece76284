"""Names of the files that a test writes for its images: one per image, none over a source."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmattn.errors import UsageError


def png_names(dataset) -> dict[str, Path]:
    """Image -> relative path of the PNG that is written for it.

    `<image name>.png`; where two images have the same name, all keep their folders below the common
    one, and where two in a folder differ in their suffix alone, they keep it.

    Args:
        dataset: a built data set, wrappers included.
    """
    images = dict.fromkeys(map(str, image_paths(dataset)))
    stems = Counter(Path(image).stem for image in images)
    if len(stems) == len(images):
        return {image: Path(f'{Path(image).stem}.png') for image in images}
    paths = {image: Path(os.path.abspath(image)) for image in images}
    root = os.path.commonpath([path.parent for path in paths.values()])
    relative = {image: path.relative_to(root) for image, path in paths.items()}
    same = Counter(path.with_suffix('') for path in relative.values())
    return {
        image: path.with_name(f'{path.name if same[path.with_suffix("")] > 1 else path.stem}.png')
        for image, path in relative.items()
    }


def image_paths(dataset) -> Iterable[str]:
    """Paths of the images of a data set, in its order."""
    if not hasattr(dataset, 'get_data_info'):
        return
    for index in range(len(dataset)):
        path = dataset.get_data_info(index).get('img_path')
        if path:
            yield path


def leaf_datasets(dataset) -> Iterator:
    """The data sets inside of the wrappers of a built one."""
    inner = getattr(dataset, 'datasets', None)
    if inner is None:
        inner = [dataset.dataset] if hasattr(dataset, 'dataset') else None
    if inner is None:
        yield dataset
    for part in inner or ():
        yield from leaf_datasets(part)


def check_outputs(dataset, folder: str | Path, names: Iterable[Path], flag: str) -> None:
    """Refuse a folder where files would be written over sources, or among them.

    Args:
        dataset: a built data set, wrappers included, whose images, label maps and annotations are
            the sources.
        folder: folder that is written to.
        names: relative paths of the files.
        flag: command-line flag that chose the folder.

    Raises:
        UsageError: names the source.
    """
    sources, scanned = _sources(dataset)
    folder, names = Path(os.path.realpath(folder)), [*names]
    writes_images = any(name.suffix in ('.png', '.jpg') for name in names)
    source_folders = {os.path.dirname(path): path for path in sources} if writes_images else {}
    for name in names:
        output = os.path.realpath(folder / name)
        source = output if output in sources else source_folders.get(os.path.dirname(output))
        if source:
            how = 'would replace' if source == output else 'would be next to'
            raise UsageError(
                f'{flag} {folder}: {name} {how} {source}, which the test reads. Choose another '
                f'folder with {flag}.'
            )
    for scanned_folder in scanned if writes_images else ():
        if scanned_folder == str(folder) or scanned_folder in map(str, folder.parents):
            raise UsageError(
                f'{flag} {folder} is inside {scanned_folder}, all images of which are read: what '
                f'is written would be read next time. Choose another folder with {flag}.'
            )


def _sources(dataset) -> tuple[set[str], set[str]]:
    """Files that a data set reads, and folders of which it reads every file; links are followed."""
    files, folders = set(), set()
    for leaf in leaf_datasets(dataset):
        ann_file = getattr(leaf, 'ann_file', None)
        if ann_file and os.path.isfile(ann_file):
            files.add(os.path.realpath(ann_file))
        elif 'seg_map_path' in (getattr(leaf, 'data_prefix', None) or {}):
            keys = 'img_path', 'seg_map_path'
            folders.update(os.path.realpath(leaf.data_prefix[k] or '.') for k in keys)
        for index in range(len(leaf) if hasattr(leaf, 'get_data_info') else 0):
            info = leaf.get_data_info(index)
            paths = (info.get(key) for key in ('img_path', 'seg_map_path'))
            files.update(os.path.realpath(path) for path in paths if path)
    return files, folders
