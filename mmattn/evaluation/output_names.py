"""Names of the files that a test writes for its images: as many as images, none over a source."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmattn.errors import UsageError


def picture_names(dataset) -> dict[str, Path]:
    """Image -> relative path of the PNG that is written for it.

    `<image name>.png`; where two images have one name, all keep their folders below the one that
    they share, and where two in a folder differ in their suffix alone, that too.

    Args:
        dataset: built, wrappers included.
    """
    images = dict.fromkeys(map(str, image_paths(dataset)))
    stems = Counter(Path(image).stem for image in images)
    if len(stems) == len(images):
        return {image: Path(f'{Path(image).stem}.png') for image in images}
    places = {image: Path(os.path.abspath(image)) for image in images}
    shared = os.path.commonpath([place.parent for place in places.values()])
    below = {image: place.relative_to(shared) for image, place in places.items()}
    same = Counter(path.with_suffix('') for path in below.values())
    return {
        image: path.with_name(f'{path.name if same[path.with_suffix("")] > 1 else path.stem}.png')
        for image, path in below.items()
    }


def image_paths(dataset) -> Iterable[str]:
    """The files of the images of a data set, in its order."""
    if not hasattr(dataset, 'get_data_info'):
        return
    for index in range(len(dataset)):
        path = dataset.get_data_info(index).get('img_path')
        if path:
            yield path


def leaves(dataset) -> Iterator:
    """The data sets inside of wrappers, built."""
    inner = getattr(dataset, 'datasets', None)
    if inner is None:
        inner = [dataset.dataset] if hasattr(dataset, 'dataset') else None
    if inner is None:
        yield dataset
    for part in inner or ():
        yield from leaves(part)


def check_outputs(dataset, folder: str | Path, names: Iterable[Path], flag: str) -> None:
    """Refuse a folder where files would be written over sources, or among them.

    Args:
        dataset: built, wrappers included; its images, label maps and annotations are the sources.
        folder: where `names` are written.
        flag: what chose the folder.

    Raises:
        UsageError: names the source.
    """
    sources, scanned = _sources(dataset)
    folder, names = Path(os.path.realpath(folder)), [*names]
    pictures = any(name.suffix == '.png' for name in names)
    beside = {os.path.dirname(source): source for source in sources} if pictures else {}
    for name in names:
        out = os.path.realpath(folder / name)
        met = out if out in sources else beside.get(os.path.dirname(out))
        if met:
            how = 'would replace' if met == out else 'would lie beside'
            raise UsageError(
                f'{flag} {folder}: {name} {how} {met}, which the test reads. Choose another folder '
                f'with {flag}.'
            )
    for place in scanned if pictures else ():
        if place == str(folder) or place in map(str, folder.parents):
            raise UsageError(
                f'{flag} {folder} is inside {place}, all images of which are read: what is written '
                f'would be read next time. Choose another folder with {flag}.'
            )


def _sources(dataset) -> tuple[set[str], set[str]]:
    """Files that a data set reads, and folders that it reads all files of, links followed."""
    files, folders = set(), set()
    for leaf in leaves(dataset):
        listed = getattr(leaf, 'ann_file', None)
        if listed and os.path.isfile(listed):
            files.add(os.path.realpath(listed))
        elif 'seg_map_path' in (getattr(leaf, 'data_prefix', None) or {}):
            keys = 'img_path', 'seg_map_path'
            folders.update(os.path.realpath(leaf.data_prefix[k] or '.') for k in keys)
        for index in range(len(leaf) if hasattr(leaf, 'get_data_info') else 0):
            info = leaf.get_data_info(index)
            paths = (info.get(key) for key in ('img_path', 'seg_map_path'))
            files.update(os.path.realpath(path) for path in paths if path)
    return files, folders
