"""The content of an imported set: what of a source is used, and how it is written."""

from collections import Counter
from pathlib import Path

import numpy as np

from mmattn.errors import DataError, UsageError
from mmattn.text import some
from mmattn.visualization.palette import palette_of

from . import config_text, writing
from .objects import check_images, finish_objects
from .records import IGNORED, SourceImage, SourceSet
from .source import Source

_BACKGROUND = 'background'  # first class of label maps that are drawn from objects
_BLACK = (0, 0, 0)


class Content:
    """What of a source is used: its problems are complete afterwards, its label maps written.

    Args:
        source: the source.
        found: its content as its format was read.
        classes: class names in their order; None to take the source's.
        task: 'detection', 'instances' or 'segmentation'; None for what the annotations are.
        out: folder of the set, for the time being.

    Attributes:
        images: images that are used.
        task: the task.
        classes: class names.

    Raises:
        UsageError: the annotations do not suit the task.
        DataError: label maps without a second class, or with too many.
    """

    def __init__(
        self,
        source: Source,
        found: SourceSet,
        classes: tuple[str, ...] | None,
        task: str | None,
        out: Path,
    ) -> None:
        self.source, self._found, self._out = source, found, out
        problems = source.problems
        usable = list(check_images(_each_once(source, found.images), problems))
        self.images = [image for image, _ in usable]
        self._sizes = {image.path: size for image, size in usable}
        _report_unlisted(source, found)
        self.task = _task(found, task)
        for image, size in usable:
            finish_objects(image, size, problems)
        if self.task != 'detection' and found.read_labels is None:
            self._drop_boxes()
        is_closed = classes is not None and found.read_labels is None
        self.classes = list(classes if is_closed else found.classes)
        self._complete_classes(is_closed)
        self._targets = writing.target_names(self.images, source.relative, problems)
        self._counts: dict[Path, np.ndarray] = {}
        if self.task == 'segmentation':
            self._write_labels()
        self._report_unused()

    def _drop_boxes(self) -> None:
        """Drop the objects with a box alone, where masks are needed."""
        for image in self.images:
            for item in image.objects:
                if not item.has_mask:
                    self.source.problems.add('no mask', image.file, item.where, '')
            image.objects = [item for item in image.objects if item.has_mask]

    def _complete_classes(self, is_closed: bool) -> None:
        """Add the names that only objects have to the classes; refuse those if they are closed."""
        others = set()
        for image in self.images:
            for item in image.objects:
                if item.name not in self.classes:
                    others.add(item.name)
                    if is_closed:
                        text = f'{item.name!r} is none of --classes'
                        self.source.problems.add('class', image.file, item.where, text)
        self.classes += sorted(others)
        if self.task == 'segmentation' and self._found.read_labels is None:
            rest = [name for name in self.classes if name != _BACKGROUND]
            self.classes = [_BACKGROUND, *rest]

    def _write_labels(self) -> None:
        if len(self.classes) >= IGNORED:
            raise DataError(f'{len(self.classes)} classes are too many for label maps of 8 bits.')
        suffixes = {Path(name).suffix for name in self._targets.values()}
        self._suffix = suffixes.pop() if len(suffixes) == 1 else ''
        self._names = {p: n.removesuffix(self._suffix) for p, n in self._targets.items()}
        label_names = {path: f'{name}.png' for path, name in self._names.items()}
        self._counts = writing.write_labels(
            self.images, self._sizes, label_names, self._found, self.classes,
            self._out / 'labels', self.source.problems,
        )  # fmt: skip
        self.images = [image for image in self.images if image.path in self._counts]
        if not self._found.has_class_names and self._counts:
            highest = int(np.flatnonzero(self._pixels()[:IGNORED]).max(initial=0))
            self.classes = [f'class_{i}' for i in range(highest + 1)]
        if len(self.classes) == 1 and not self.source.problems.is_refused:
            raise DataError(
                f'{self.source.root}: the label maps have one class alone, {self.classes[0]!r}, '
                'and nothing to tell it from. Name at least two, such as background, with '
                '--classes.'
            )

    def _pixels(self) -> np.ndarray:
        """(256,) pixels per label of all images."""
        return sum(self._counts.values(), np.zeros(256, np.int64))

    def _report_unused(self) -> None:
        problems = self.source.problems
        if self.task == 'segmentation':
            pixels = self._pixels()
            used = {name for i, name in enumerate(self.classes) if pixels[i]}
        else:
            used = {item.name for image in self.images for item in image.objects}
        for name in self.classes:
            if name not in used:
                problems.add('unused class', self.source.root, '', name)
        for image in self.images:
            if not image.objects and image.labels is None:
                problems.add('background', image.path, '', '')

    def nothing_left(self) -> str:
        """Why there is nothing to train on, as a sentence; '' if there is."""
        if not self.images:
            is_lost = self.source.problems.count('no image')
            return f'no image is left.{" Name their folder with --images." if is_lost else ""}'
        if self._found.read_labels is None and not any(image.objects for image in self.images):
            return 'no object is left.'
        return ''

    def name_of(self, image: SourceImage) -> str:
        """File name of an image in the set."""
        return self._targets[image.path]

    def describe(self) -> str:
        """The content in words: '364 images, 3 classes (RBC, WBC, Platelets), for detection'."""
        count = len(self.classes)
        classes = f'{count} class{"es" if count > 1 else ""} ({some(self.classes, 8)})'
        return f'{len(self.images)} images, {classes}, for {self.task}'

    def write(self, splits: dict[str, list[SourceImage]]) -> list[str]:
        """Write images and annotations; returns a line for each split.

        Args:
            splits: images of train, val and test.
        """
        out, lines = self._out, []
        used = [image for images in splits.values() for image in images]
        writing.link_images(used, self._targets, out / 'images')
        if self.task == 'segmentation':
            for split, images in splits.items():
                path = out / 'annotations' / f'{split}.txt'
                writing.write_list(images, self._names, path)
                lines.append(f'{split}: {len(images)} images')
            return lines
        masks = self.task == 'instances'
        counts = writing.write_coco(
            splits, self._sizes, self._targets, self.classes, out / 'annotations', masks=masks
        )
        what = 'masks' if masks else 'boxes'
        for split, images in splits.items():
            per_class = some([f'{name} {n}' for name, n in counts[split].most_common()], 10)
            total = counts[split].total()
            lines.append(f'{split}: {len(images)} images, {total} {what} ({per_class})')
        return lines

    def config_text(self, name: str, splits: dict[str, list[SourceImage]]) -> str:
        """The config of the set; see `config_text`."""
        sides = np.array([self._sizes[image.path] for image in self.images])
        width, height = np.median(sides, 0).round().astype(int).tolist()
        summary = f'{len(self.images)} images for {self.task}'
        shared = (name, summary, self.classes, self._palette(), list(splits))
        if self.task == 'segmentation':
            suffixes = self._suffix, '.png'
            return config_text.segmentation_config(*shared, (width, height), suffixes=suffixes)
        masks = self.task == 'instances'
        return config_text.detection_config(*shared, (width, height), masks=masks)

    def _palette(self) -> list[tuple[int, int, int]]:
        """Colours of the classes: the source's where it has all, or ones that differ well."""
        colours = {_BACKGROUND: _BLACK, **self._found.colours}
        if self._found.colours and all(name in colours for name in self.classes):
            return [colours[name] for name in self.classes]
        first = [_BLACK] if self.classes[0] == _BACKGROUND else []
        return palette_of(dict(classes=self.classes, palette=first or None))


def _each_once(source: Source, images: list[SourceImage]) -> list[SourceImage]:
    """The images, of which the first counts where several are of one file."""
    found: dict[Path, SourceImage] = {}
    for image in images:
        if found.setdefault(image.path, image) is not image:
            source.problems.add('annotators', image.file, '', f'{image.path.name} has others, too')
    return list(found.values())


def _report_unlisted(source: Source, found: SourceSet) -> None:
    """Report the images without annotation in the folders of those that have one."""
    used = {image.path for image in found.images}
    folders = {path.parent for path in used}
    for path in source.images.values():
        if path not in used and path not in found.mask_files and path.parent in folders:
            source.problems.add('not listed', path, '', 'no annotation names it')


def _task(found: SourceSet, task: str | None) -> str:
    """The task that is asked for, or that the annotations are made for.

    Raises:
        UsageError: the annotations are not enough for it.
    """
    if found.read_labels is not None:
        if task not in (None, 'segmentation'):
            raise UsageError(
                f'--task {task}: label maps tell classes apart, not objects. Leave --task out, or '
                'import masks or boxes of objects.'
            )
        return 'segmentation'
    objects = [item for image in found.images for item in image.objects]
    counts = Counter(item.has_mask for item in objects)
    if task in ('instances', 'segmentation') and objects and not counts[True]:
        raise UsageError(f'--task {task}: no object has a mask. Leave --task out.')
    return task or ('instances' if counts[True] and not counts[False] else 'detection')
