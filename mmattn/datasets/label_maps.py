"""The images and label maps of a data set, inspected as its config loads them."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from mmattn.errors import MmattnError, UsageError
from mmattn.progress import track

from . import check_cache, image_io
from .exif_orientation import labels_follow_exif
from .image_io import Fault, ImageInfo
from .image_limits import max_megapixels, remedy_for_large
from .loading_steps import LoadingSteps, label_map_of
from .pairing import PairedFiles

_VERSION = 4  # of the check: verdicts of other versions do not count
_HOW_TO_GET = {
    'CityscapesDataset': 'Get it from cityscapes-dataset.com, then run: '
    'python tools/prepare_data.py cityscapes --root DIR',
    'ADE20KDataset': 'Get ADEChallengeData2016.zip of the MIT scene parsing benchmark, then run: '
    'python tools/prepare_data.py ade20k --root DIR',
    'CamVidDataset': 'Run: python tools/prepare_data.py camvid --root DIR',
}
_CONVERTED = ('CityscapesDataset', 'CamVidDataset')  # prepare_data.py writes their labels anew
_HOW_TO_MAKE_STREET = 'Make it with: python tools/prepare_data.py street'
_MAX_LOADED = 1000  # samples loaded before a training, where headers do not suffice
_MAX_ORIENTED = 64  # images with an EXIF orientation that are compared with their label maps


class LabelMaps(PairedFiles):
    """The images and label maps of a data set, as its config loads them.

    Args:
        dataset: a data set of MMSegmentation's kind, lazily built.
        leaf: config of the data set.
        where: config key of its data loader.

    Attributes:
        train: whether the data set is trained on.
        classes: names of the classes.
        loading: how the config loads a sample.
        table: (256,) class per label in training, 255 if ignored, -1 if refused.

    Raises:
        DataError: a folder does not exist or holds no image.
        UsageError: the config contradicts itself.
    """

    def __init__(self, dataset, leaf: dict, where: str) -> None:
        self._type, self.train = leaf['type'].split('.')[-1], where.startswith('train')
        name = f'data set {self._type} ({where})'
        remedy = _HOW_TO_GET.get(self._type, f'Set {where.split(",")[0]}.dataset.data_root.')
        self._is_street = (
            self._type == 'CityscapesDataset' and Path(dataset.data_root or '').name == 'street'
        )
        if self._is_street:
            remedy = _HOW_TO_MAKE_STREET
        self.classes = dataset.metainfo.get('classes')
        if not self.classes:
            raise UsageError(f'{name} has no classes. Set metainfo=dict(classes=(...)).')
        self._reduce_zero_label = bool(dataset.reduce_zero_label)
        for step in leaf.get('pipeline', []):
            value = step.get('reduce_zero_label')
            if value is not None and bool(value) != self._reduce_zero_label:
                raise UsageError(
                    f'{name}: {step["type"]} has reduce_zero_label={value}, the data set has '
                    f'{self._reduce_zero_label}. Set it in the data set alone.'
                )
        super().__init__(dataset, name, remedy, is_prepared=self._type in _HOW_TO_GET)
        self.loading = LoadingSteps(leaf.get('pipeline', []))
        # labels are those of the files if the stock steps read them, else those the steps give
        self._from_files = self.loading.label is not None
        self._num_labels = len((self._from_files and dataset.label_map) or self.classes)
        self.table = self._class_table(dataset)
        self._oriented: list[tuple[int, int]] = []  # index of a pair, and its EXIF orientation

    def cache_key(self) -> str:
        """The key of the verdict on these files."""
        settings = [_VERSION, self.train, self.table.tolist(), self.classes]
        settings += [self._reduce_zero_label, self.loading.describe(), max_megapixels()]
        return check_cache.fingerprint(self.pairs, settings)

    def _class_table(self, dataset) -> np.ndarray:
        first = int(self._reduce_zero_label and self._from_files)
        labels = range(min(self._num_labels, 256 - first))
        table = np.full(256, -1)
        classes = (dataset.label_map or {}) if self._from_files else {}
        table[first : first + len(labels)] = [classes.get(i, i) for i in labels]
        table[:first] = 255
        if 0 <= dataset.ignore_index < 256:
            table[dataset.ignore_index] = 255
        return table

    def scan(self, pool: Executor, decode: bool = False) -> Iterator[ImageInfo]:
        """Inspect every pair; `decode` decodes the images, too."""
        self._oriented.clear()
        if self.loading.image and self._from_files:
            work = partial(
                image_io.inspect_pair,
                table=self.table,
                decode=decode,
                image=self.loading.image,
                label=self.loading.label,
            )
            infos = pool.map(work, self.pairs, chunksize=8)
            title = f'checking {self.folder}'
            for index, info in enumerate(track(infos, total=len(self.pairs), title=title)):
                if info.orientation > 1:
                    self._oriented.append((index, info.orientation))
                yield self._confirm(index, info)
            return
        count = len(self.pairs) if decode else min(len(self.pairs), _MAX_LOADED)
        indices = np.linspace(0, len(self.pairs) - 1, count).astype(int).tolist()
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            infos = threads.map(self._load, indices)
            yield from track(infos, total=count, title=f'loading {self.folder}')

    def _confirm(self, index: int, info: ImageInfo) -> ImageInfo:
        """Drop faults found in headers if the steps of the config load the pair well."""
        inconclusive = {'unknown', 'size', 'exif'}
        if not inconclusive & {fault.kind for fault in info.faults}:
            return info
        try:
            results = self.loading.run(self.samples[index])
        except MmattnError:
            return info
        image, labels = results.get('img'), label_map_of(results)
        if image is None or labels is None or image.shape[:2] != labels.shape:
            return info
        return info._replace(faults=[f for f in info.faults if f.kind not in inconclusive])

    def _load(self, index: int) -> ImageInfo:
        """Inspect what the steps of the config make of a pair."""
        image, label = self.pairs[index]
        fault = image_io.header_fault(image)
        if fault:
            return ImageInfo([fault], None)
        try:
            results = self.loading.run(self.samples[index])
            shape = getattr(results.get('img'), 'shape', None)
            if self._from_files:  # the image alone needs another reader
                size, counts = image_io.inspect_label_map(label, self.loading.label)
                label_shape, faults = size[::-1], []
            else:
                labels = label_map_of(results)
                if labels is None:
                    return ImageInfo(self._shape_faults(results, label), None)
                label_shape = labels.shape
                counts, faults = image_io.count_labels(labels, label)
        except image_io.UnusableImage as unusable:
            return ImageInfo([unusable.fault], None)
        except MmattnError as error:
            return ImageInfo([Fault('steps', str(error).removesuffix('.'))], None)
        if shape is not None and shape[:2] != label_shape:
            sizes = ('x'.join(map(str, sides[1::-1])) for sides in (label_shape, shape))
            text = 'label map {} is {}, its image {}'.format(label, *sizes)
            faults.append(Fault('size', text))
        if counts is not None:
            faults += image_io.wrong_labels(counts, self.table, label)
        return ImageInfo(faults, counts, size=label_shape[::-1])

    def _shape_faults(self, results: dict, label: str) -> list[Fault]:
        """The fault of labels that are not (H, W), unless a step of the user made them."""
        labels = results.get('gt_seg_map')
        if self.loading.custom or not self.loading.flat or labels is None:
            return []
        shape = getattr(labels, 'shape', '?')
        return [Fault('format', f'label map {label} is read as {shape}, not height and width')]

    def check_overall(self, counts: np.ndarray) -> tuple[list[Fault], list[str]]:
        """Check the label maps as a whole against the config.

        Args:
            counts: (256,) pixels per label in the whole set.

        Returns:
            faults, and warnings, a sentence each.
        """
        faults, warnings = self._check_orientations()
        present, total = set(np.flatnonzero(counts).tolist()), int(counts.sum())
        if len(self.classes) == 1:
            text = (
                f'{self.name} has one class, {self.classes[0]!r}: there is nothing to tell it '
                'from, and every score is near 100'
            )
            return [Fault('one', text), *faults], warnings
        if not total or (self.table[list(present)] < 0).any():
            return faults, warnings
        first, last = self.classes[0], self._num_labels
        share = f'{100 * counts[0] / total:.1f} % of the pixels'
        if present == {0, 255} and not self._reduce_zero_label and last > 1:
            text = (
                f'the label maps of {self.folder} hold nothing but 0 and 255, as black and white '
                f'masks do, but 0 means {first!r} and 255 is ignored'
            )
            faults.append(Fault('mask', text))
        elif not (self.table[list(present)] != 255).any():
            text = f'no pixel of the label maps of {self.folder} has a class: all are ignored'
            if self.train:
                faults.append(Fault('ignored', text))
            else:
                warnings.append(f'{self.name}: {text}.')
        elif self.train and len(present) == 1:
            only = self.classes[self.table[min(present)]]
            warnings.append(
                f'{self.name}: every pixel is {only!r}, so there is nothing to tell it from, and a '
                'network that learns nothing scores near 100.'
            )
        elif (
            self._reduce_zero_label
            and self._from_files
            and last - 1 in present
            and last not in present
        ):
            if counts[0] * (last + 1) > total:  # more than a label has on average
                warnings.append(
                    f'{self.name}: label {last} never occurs, and reduce_zero_label=True ignores '
                    f'label 0, {share}. If 0 means {first!r}, set reduce_zero_label=False in every '
                    'data set.'
                )
        return faults, warnings

    def _check_orientations(self) -> tuple[list[Fault], list[str]]:
        """Check label maps against the EXIF orientation of images whose sizes do not show it."""
        if not self._oriented:
            return [], []
        labelled = []
        for index, _ in self._oriented[:_MAX_ORIENTED]:
            try:
                labels = label_map_of(self.loading.run(self.samples[index]))
            except MmattnError:  # reported as damaged elsewhere
                continue
            if labels is not None:
                labelled.append((self.pairs[index][0], labels))
        follow, applied = labels_follow_exif(labelled), self.loading.image.applies_exif
        if follow is applied:
            return [], []
        index, orientation = self._oriented[0]
        what = (
            f'{len(self._oriented)} images have an EXIF orientation, e.g. {self.pairs[index][0]} '
            f'{orientation}, which training {"follows" if applied else "ignores"}'
        )
        if follow is None:
            return [], [f'{self.name}: {what}. See that the label maps are drawn in that position.']
        how = 'as the camera stored it' if applied else 'as EXIF turns it'
        return [Fault('turned', f'{what}, but the label maps lie on the picture {how}')], []

    def remedy(self, kind: str, wrong: Iterable[int] = (), faults: Iterable[Fault] = ()) -> str:
        """What to do about faults of a kind.

        Args:
            kind: kind of the faults.
            wrong: labels that are no classes.
            faults: the faults.
        """
        wrong = {*wrong}
        if kind == 'one' or (kind == 'labels' and len(self.classes) == 1):
            return self._remedy_for_one_class(wrong)
        if kind == 'large':
            return remedy_for_large(fault.megapixels for fault in faults)
        if kind in ('mask', 'palette', 'format') and self._fits_pillow():
            return "Set imdecode_backend='pillow' in LoadAnnotations of every pipeline."
        if kind == 'mask' and self._num_labels == 2:
            return 'Write 1 instead of 255 into each pixel.'
        if kind == 'mask':
            return f'Write the number of its class into each pixel, 0..{self._num_labels - 1}.'
        if kind == 'ignored':
            return f'Is ignore_index or reduce_zero_label set wrongly? {self.default_remedy}'
        if kind in ('exif', 'turned'):
            return image_io.remedy_for_orientation(self.loading.image)
        if kind == 'thin':
            return 'Leave it and its image out.'
        if kind == 'steps':
            return 'Correct the step, or the file.' if self.loading.custom else 'Replace the file.'
        if kind in ('file', 'unknown', 'cut', 'damaged', 'size', 'missing'):
            return 'Replace the file.'
        if kind not in ('labels', 'format'):
            return self.default_remedy
        if self.label_suffix.endswith(('_labelIds.png', '_instanceIds.png')):
            return (
                f'Leave seg_map_suffix={self.label_suffix!r} out: train ids are in '
                '*_labelTrainIds.png, made by: python tools/prepare_data.py cityscapes --root DIR'
            )
        if not self._is_street and self._type not in _HOW_TO_GET:
            return self._remedy_for_labels(kind, wrong)
        if (
            wrong == {self._num_labels}
            and not self._reduce_zero_label
            and self._type not in _CONVERTED
        ):
            return self._remedy_reduce_or_ignore()
        return f'The labels must be train ids. {self.default_remedy}'

    def _remedy_for_labels(self, kind: str, wrong: set[int]) -> str:
        """What to do about wrong labels of a data set that is none of the known ones."""
        if (
            kind == 'labels'
            and wrong == {self._num_labels}
            and not self._reduce_zero_label
            and self._from_files
        ):
            return self._remedy_reduce_or_ignore()
        if self._num_labels == 19 and 18 < max(wrong, default=0) < 34:
            return (
                'They look like the label ids of Cityscapes. Make train ids with: '
                'python tools/prepare_data.py cityscapes --root DIR'
            )
        first = int(self._reduce_zero_label and self._from_files)
        number = f'the number of its class into each pixel, {first}..{self._num_labels - 1 + first}'
        if kind == 'labels':
            return f'Write {number}, or 255 where it has none.'
        return (
            f'Write {number}, as 8 bits and one channel, or load them by a step of your own in '
            'place of LoadAnnotations.'
        )

    def _remedy_reduce_or_ignore(self) -> str:
        return (
            'If 0 means that a pixel has no class, set reduce_zero_label=True in every data set; '
            f'if {self._num_labels} does, write 255 instead.'
        )

    def _remedy_for_one_class(self, wrong: set[int]) -> str:
        """What to do about a data set of one class."""
        write = ''
        if not wrong <= {1}:
            write = 'Write 0 and 1 into the label maps. '
        elif 1 not in wrong and not self._reduce_zero_label:
            write = 'Write 1 where that class is and 0 elsewhere into the label maps. '
        leave = 'leave reduce_zero_label out, and ' if self._reduce_zero_label else ''
        names = ('background', self.classes[0])
        return (
            f'{write}Name both classes in every data set, {leave}let the heads tell them apart: '
            f'metainfo=dict(classes={names}), num_classes=2, out_channels=1, '
            'loss_decode=dict(use_sigmoid=True) in each head.'
        )

    def _fits_pillow(self) -> bool:
        """Whether label maps that OpenCV misreads would be valid if Pillow read them."""
        if not self._from_files or self.loading.label.backend != 'cv2':
            return False
        try:
            _, counts = image_io.inspect_label_map(
                self.pairs[0][1], image_io.DEFAULT_LABEL_DECODING
            )
        except image_io.UnusableImage:
            return False
        return bool((self.table[counts > 0] >= 0).all()) and counts[255] != counts[1:].sum()
