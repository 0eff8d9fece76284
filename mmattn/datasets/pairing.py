"""Images and label maps of a data set, paired by name; why files are missing, and what to do."""

import os
from collections.abc import Sequence
from pathlib import Path

from mmattn.errors import DataError, UsageError, printable
from mmattn.text import some

from .fix_commands import remove_bom_command
from .image_io import Fault

_SHOWN = 10  # files in a list of names
_IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.tif', '.tiff', '.bmp', '.webp')
NO_IMAGE = 'do not exist'
NO_LABEL_MAP = 'have no label map'


class PairedFiles:
    """Images and label maps of a data set, as its config pairs them.

    Args:
        dataset: a data set of MMSegmentation's kind, lazily built.
        name: the data set, for messages.
        remedy: what to do where files are missing, if nothing better is known.
        is_prepared: whether `remedy` is to run tools/prepare_data.py.

    Attributes:
        folder: folder of the images.
        label_folder: folder of the label maps.
        count: images, those with a missing file included.
        pairs: paths of image and label map, where both exist.
        samples: entries of the data set, one per pair.
        missing: a fault per image with a missing file; its kind is NO_IMAGE or NO_LABEL_MAP.

    Raises:
        DataError: a folder does not exist or holds no image.
        UsageError: a data set has several suffixes.
    """

    def __init__(self, dataset, name: str, remedy: str, *, is_prepared: bool) -> None:
        self.name, self.default_remedy, self._is_prepared = name, remedy, is_prepared
        self.folder, self.label_folder = (
            Path(dataset.data_prefix.get(key) or '.') for key in ('img_path', 'seg_map_path')
        )
        for folder in Path(dataset.data_root or '.'), self.folder, self.label_folder:
            if not folder.is_dir():
                raise DataError(f'{self.name}: {folder} does not exist. {self.default_remedy}')
        self.ann_file = dataset.ann_file
        if self.ann_file and not os.path.exists(self.ann_file):
            raise DataError(f'{self.name}: {self.ann_file} does not exist. Set ann_file.')
        self._has_list = bool(self.ann_file) and not os.path.isdir(self.ann_file)
        _check_suffixes(self.name, dataset)
        self.image_suffix, self.label_suffix = dataset.img_suffix, dataset.seg_map_suffix
        samples = self._load_samples(dataset)
        paths = [(sample['img_path'], sample['seg_map_path']) for sample in samples]
        if self.ann_file:
            for pair in paths:
                self._check_inside(pair)
        if not paths:
            raise DataError(
                f'{self.name}: no image *{self.image_suffix} below {self.folder}. '
                f'{self._other_suffix() or self.default_remedy}'
            )
        self.count, self.missing, self.pairs, self.samples = len(paths), [], [], []
        self._incomplete: list[tuple[str, str]] = []
        for (image, label), sample in zip(paths, samples):
            if os.path.isfile(image) and os.path.isfile(label):
                self.pairs.append((image, label))
                self.samples.append(sample)
                continue
            self._incomplete.append((image, label))
            if not os.path.isfile(image):
                self.missing.append(Fault(NO_IMAGE, f'{image} is missing'))
            else:
                self.missing.append(Fault(NO_LABEL_MAP, f'{label} is missing'))

    def _load_samples(self, dataset) -> list[dict]:
        samples = dataset.load_data_list()
        if self._has_list and not samples:
            raise DataError(f'{self.name}: {self.ann_file} names no image. Set ann_file.')
        indices = getattr(dataset, '_indices', None)
        self._is_subset = indices is not None
        if not self._is_subset or not samples:
            return samples
        subset = _select(samples, indices)
        if not subset:
            raise DataError(
                f'{self.name}: indices={indices!r} leaves none of {len(samples)} images. Leave it '
                'out.'
            )
        return subset

    def _check_inside(self, pair: tuple[str, str]) -> None:
        """Refuse a name in a list of images that leads out of the folder."""
        for path, folder in zip(pair, (self.folder, self.label_folder)):
            if not os.path.abspath(path).startswith(os.path.join(os.path.abspath(folder), '')):
                raise DataError(f'{self.name}: {path}, listed in {self.ann_file}, leaves {folder}.')

    def _other_suffix(self) -> str:
        """A remedy that names the suffix of most images; empty where there are no images."""
        counts: dict[str, int] = {}
        for _, _, names in os.walk(self.folder):
            for name in names:
                suffix = Path(name).suffix
                if suffix.lower() in _IMAGE_SUFFIXES:
                    counts[suffix] = counts.get(suffix, 0) + 1
        if not counts:
            return ''
        suffix = max(counts, key=counts.get)
        return f'There are {counts[suffix]} *{suffix}: set img_suffix={suffix!r}.'

    def remedy_for_missing(self, kind: str) -> str:
        """What to do about images with a missing file, by the kind of their fault."""
        if kind == NO_IMAGE:
            remedy = self._remedy_for_list()
        elif not self.image_suffix and not self.ann_file:  # a name is nothing but suffix
            remedy = self._other_suffix()
        else:
            lost = [label for image, label in self._incomplete if os.path.isfile(image)]
            suffix = _suffix_of_all(lost, self.label_suffix)
            remedy = f'Set seg_map_suffix={suffix!r}.' if suffix is not None else ''
        if remedy:
            return remedy
        if len(self._incomplete) == self.count or self._is_prepared:
            return self.default_remedy
        if kind == NO_IMAGE:
            return f'Get them, or take their names out of {self.ann_file}.'
        rest = f'take their names out of {self.ann_file}' if self._has_list else (
            'name the others in a file, one a line without suffix, and set ann_file to it'
        )  # fmt: skip
        return f'Get them, or {rest}.'

    def _remedy_for_list(self) -> str:
        """What is wrong with the names in the list of images; empty if unknown."""
        lines = Path(self.ann_file).read_text(encoding='utf-8').splitlines()
        if lines and lines[0].startswith('\ufeff'):
            command = remove_bom_command(self.ann_file)
            return f'{self.ann_file} starts with a byte-order mark. Take it off: {command}'
        empty = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
        if empty:
            return f'Line {empty} of {self.ann_file} is empty: remove it.'
        lost = [image for image, _ in self._incomplete if not os.path.isfile(image)]
        end = self.image_suffix
        if end and all(path.endswith(end) and os.path.isfile(path[: -len(end)]) for path in lost):
            return f'{self.ann_file} lists them with {end!r}: write the names without suffix.'
        suffix = _suffix_of_all(lost, end)
        return f'Set img_suffix={suffix!r}.' if suffix is not None else ''

    def unpaired_labels(self) -> list[str]:
        """A warning if label maps below the folder belong to no image."""
        if self._has_list or self._is_subset:
            return []
        paired = {os.path.normpath(label) for _, label in self.pairs}
        unpaired = [
            path
            for folder, _, names in os.walk(self.label_folder)
            for name in names
            if name.endswith(self.label_suffix)
            and (path := os.path.normpath(os.path.join(folder, name))) not in paired
        ]
        if not unpaired:
            return []
        relative = [os.path.relpath(path, self.label_folder) for path in unpaired]
        stems = [
            os.path.join(self.folder, path[: -len(self.label_suffix)])
            for path in relative
            if self.label_suffix
        ]
        suffixes = [*_IMAGE_SUFFIXES, *map(str.upper, _IMAGE_SUFFIXES)]
        existing = [end for stem in stems for end in suffixes if os.path.isfile(stem + end)]
        hint = ''
        if existing:
            suffix = max(set(existing), key=existing.count)
            hint = (
                f' {existing.count(suffix)} have an image *{suffix}, which '
                f'img_suffix={self.image_suffix!r} leaves out. Rename those, or add a data set '
                f'with img_suffix={suffix!r}.'
            )
        what = f'{len(unpaired)} label maps belong to no image of {self.folder}'
        return [f'{what}: {some_paths(sorted(unpaired))}.{hint}']


def _check_suffixes(name: str, dataset) -> None:
    """Refuse several suffixes: MMSegmentation cuts off as many letters as there are suffixes."""
    for key in 'img_suffix', 'seg_map_suffix':
        value = getattr(dataset, key)
        if not isinstance(value, str):
            parts = ', '.join(f'dict(..., {key}={suffix!r})' for suffix in value)
            raise UsageError(
                f'{name}: {key}={value!r}: a data set has one suffix. Write '
                f"dict(type='ConcatDataset', datasets=[{parts}])."
            )


def _select(samples: list, indices: int | Sequence[int]) -> list:
    """The samples that `indices` of a data set selects, as mmengine counts them."""
    if isinstance(indices, int):
        return samples[:indices] if indices >= 0 else samples[indices:]
    return [samples[i] for i in indices]


def _suffix_of_all(paths: list[str], suffix: str) -> str | None:
    """The one suffix with which a file exists instead of each path that ends with `suffix`."""
    stems = [path[: len(path) - len(suffix)] for path in paths if path.endswith(suffix)]
    if not stems or len(stems) < len(paths) or any(not os.path.basename(s) for s in stems):
        return None
    folder, start = os.path.split(stems[0])
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return None
    others = [name[len(start) :] for name in names if name.startswith(start)]
    fitting = [o for o in others if o and all(os.path.isfile(stem + o) for stem in stems)]
    return min(fitting, key=len) if fitting else None


def some_paths(paths: list[str]) -> str:
    """The first paths of a list, safe to print."""
    return some(map(printable, paths), _SHOWN)
