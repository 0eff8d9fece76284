"""The images and label maps of a data set, looked at as its config loads them."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from mmattn.errors import DataError, MmattnError, UsageError
from mmattn.progress import track

from . import exif_orientation as turns
from . import image_io as files
from . import pairing
from .image_io import Fault, Looked
from .loading_steps import Loading, label_map_of

_HOW_TO_GET = {
    'CityscapesDataset': 'Get it from cityscapes-dataset.com, then run: '
    'python tools/prepare_data.py cityscapes --root DIR',
    'ADE20KDataset': 'Get ADEChallengeData2016.zip of the MIT scene parsing benchmark, then run: '
    'python tools/prepare_data.py ade20k --root DIR',
    'CamVidDataset': 'Run: python tools/prepare_data.py camvid --root DIR',
}
_CONVERTED = ('CityscapesDataset', 'CamVidDataset')  # prepare_data.py writes their labels anew
_HOW_TO_MAKE_STREET = 'Make it with: python tools/prepare_data.py street'
_MOST = 1000  # samples that are loaded before a training, where a header tells too little


class LabelMaps:
    """The images and label maps of a data set as the config has it.

    Args:
        dataset: of MMSegmentation's kind, lazily built.
        leaf: its config.
        where: the key of its data loader.

    Attributes:
        name: of the data set, for messages.
        folder: of the images.
        pairs: paths of an image and its label map, where both exist.
        missing: a fault for every file that is not there; its kind says what images lack.
        classes: names of the classes.
        loading: how the config loads a sample.
        table: (256,) what training makes of a label: a class, 255 if ignored, -1 if refused.

    Raises:
        DataError: a folder does not exist or holds no image.
        UsageError: the config contradicts itself.
    """

    def __init__(self, dataset, leaf: dict, where: str) -> None:
        self.kind, self.train = leaf['type'].split('.')[-1], where.startswith('train')
        self.name = f'data set {self.kind} ({where})'
        self.remedy = _HOW_TO_GET.get(self.kind, f'Set {where.split(",")[0]}.dataset.data_root.')
        if self.kind == 'CityscapesDataset' and Path(dataset.data_root or '').name == 'street':
            self.remedy = _HOW_TO_MAKE_STREET
        self.classes = dataset.metainfo.get('classes')
        if not self.classes:
            raise UsageError(f'{self.name} has no classes. Set metainfo=dict(classes=(...)).')
        self.reduced = bool(dataset.reduce_zero_label)
        for step in leaf.get('pipeline', []):
            asked = step.get('reduce_zero_label')
            if asked is not None and bool(asked) != self.reduced:
                raise UsageError(
                    f'{self.name}: {step["type"]} has reduce_zero_label={asked}, the data set has '
                    f'{self.reduced}. Set it in the data set alone.'
                )
        self.folder, self.label_folder = (
            Path(dataset.data_prefix.get(key) or '.') for key in ('img_path', 'seg_map_path')
        )
        for folder in Path(dataset.data_root or '.'), self.folder, self.label_folder:
            if not folder.is_dir():
                raise DataError(f'{self.name}: {folder} does not exist. {self.remedy}')
        self.list = dataset.ann_file
        if self.list and not os.path.exists(self.list):
            raise DataError(f'{self.name}: {self.list} does not exist. Set ann_file.')
        self.listed = bool(self.list) and not os.path.isdir(self.list)
        pairing.check_suffixes(self.name, dataset)
        self.image_suffix, self.suffix = dataset.img_suffix, dataset.seg_map_suffix
        samples = dataset.load_data_list()
        if self.listed and not samples:
            raise DataError(f'{self.name}: {self.list} names no image. Set ann_file.')
        indices = getattr(dataset, '_indices', None)
        self.cut = indices is not None
        if self.cut and samples:
            count = len(samples)
            samples = pairing.chosen(samples, indices)
            if not samples:
                raise DataError(
                    f'{self.name}: indices={indices!r} leaves none of {count} images. Leave it out.'
                )
        pairs = [(d['img_path'], d['seg_map_path']) for d in samples]
        if self.list:
            for pair in pairs:
                self._check_inside(pair, self.list)
        if not pairs:
            raise DataError(
                f'{self.name}: no image *{self.image_suffix} below {self.folder}. '
                f'{pairing.other_suffix(self) or self.remedy}'
            )
        self.count, self.missing, self.pairs, self._samples = len(pairs), [], [], []
        for (image, label), sample in zip(pairs, samples):
            if not os.path.isfile(image):
                self.missing.append(Fault('do not exist', f'{image} is missing'))
            elif not os.path.isfile(label):
                self.missing.append(Fault('have no label map', f'{label} is missing'))
            else:
                self.pairs.append((image, label))
                self._samples.append(sample)
        self.lost = [
            pair for pair in pairs if not (os.path.isfile(pair[0]) and os.path.isfile(pair[1]))
        ]
        self.loading = Loading(leaf.get('pipeline', []))
        # what the files hold if the stock steps read them, else what the steps make of them
        self.raw = self.loading.label is not None
        self.known = len((self.raw and dataset.label_map) or self.classes)
        self.table = self._table(dataset)
        self.turned: list[tuple[int, int]] = []  # number of a pair, and its orientation

    def _check_inside(self, pair: tuple[str, str], file: str) -> None:
        """Refuse a name in a list of images that leads out of the folder."""
        for path, folder in zip(pair, (self.folder, self.label_folder)):
            if not os.path.abspath(path).startswith(os.path.join(os.path.abspath(folder), '')):
                raise DataError(f'{self.name}: {path}, listed in {file}, leaves {folder}.')

    def _table(self, dataset) -> np.ndarray:
        first = int(self.reduced and self.raw)
        known = range(min(self.known, 256 - first))
        table = np.full(256, -1)
        classes = (dataset.label_map or {}) if self.raw else {}
        table[first : first + len(known)] = [classes.get(i, i) for i in known]
        table[:first] = 255
        if 0 <= dataset.ignore_index < 256:
            table[dataset.ignore_index] = 255
        return table

    def scan(self, pool: Executor, whole: bool = False) -> Iterator[Looked]:
        """Look at every pair, decoding the images if `whole`."""
        self.turned.clear()
        if self.loading.image and self.raw:
            work = partial(
                files.look,
                table=self.table,
                whole=whole,
                image=self.loading.image,
                label=self.loading.label,
            )
            found = pool.map(work, self.pairs, chunksize=8)
            title = f'checking {self.folder}'
            for index, looked in enumerate(track(found, total=len(self.pairs), title=title)):
                if looked.orientation > 1:
                    self.turned.append((index, looked.orientation))
                yield self._confirmed(index, looked)
            return
        count = len(self.pairs) if whole else min(len(self.pairs), _MOST)
        chosen = np.linspace(0, len(self.pairs) - 1, count).astype(int).tolist()
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            found = threads.map(self._load, chosen)
            yield from track(found, total=count, title=f'loading {self.folder}')

    def _confirmed(self, index: int, looked: Looked) -> Looked:
        """Without what headers said against a pair that the config's own steps load well."""
        doubtful = {'unknown', 'size', 'exif'}
        if not doubtful & {fault.kind for fault in looked.faults}:
            return looked
        try:
            results = self.loading.run(self._samples[index])
        except MmattnError:
            return looked
        image, labels = results.get('img'), label_map_of(results)
        if image is None or labels is None or image.shape[:2] != labels.shape:
            return looked
        return looked._replace(faults=[f for f in looked.faults if f.kind not in doubtful])

    def _load(self, index: int) -> Looked:
        """Look at what the steps of the config make of a pair."""
        image, label = self.pairs[index]
        fault = files.header_fault(image)
        if fault:
            return Looked([fault], None)
        try:
            results = self.loading.run(self._samples[index])
            shape = getattr(results.get('img'), 'shape', None)
            if self.raw:  # the image alone needs another reader
                size, pixels = files.read_labels(label, self.loading.label)
                own, faults = size[::-1], []
            else:
                labels = label_map_of(results)
                if labels is None:
                    return Looked(self._unlike(results, label), None)
                own = labels.shape
                pixels, faults = files.count_labels(labels, label)
        except files.Unfit as unfit:
            return Looked([unfit.fault], None)
        except MmattnError as error:
            return Looked([Fault('steps', str(error).removesuffix('.'))], None)
        if shape is not None and shape[:2] != own:
            texts = ('x'.join(map(str, s[1::-1])) for s in (own, shape))
            text = 'label map {} is {}, its image {}'.format(label, *texts)
            faults.append(Fault('size', text))
        if pixels is not None:
            faults += files.wrong_labels(pixels, self.table, label)
        return Looked(faults, pixels)

    def _unlike(self, results: dict, label: str) -> list[Fault]:
        """The fault of labels that are no (H, W), unless another loader than usual made them."""
        found = results.get('gt_seg_map')
        if self.loading.own or not self.loading.flat or found is None:
            return []
        shape = getattr(found, 'shape', '?')
        return [Fault('format', f'label map {label} is read as {shape}, not height and width')]

    def judge(self, pixels: np.ndarray) -> tuple[list[Fault], list[str]]:
        """What all label maps together say against the config.

        Args:
            pixels: (256,) how many pixels of the whole set have each label.

        Returns:
            faults, and warnings, a sentence each.
        """
        faults, warnings = self._judge_turns()
        present, total = set(np.flatnonzero(pixels).tolist()), int(pixels.sum())
        if len(self.classes) == 1:
            text = (
                f'{self.name} has one class, {self.classes[0]!r}: there is nothing to tell it '
                'from, and every score is near 100'
            )
            return [Fault('one', text), *faults], warnings
        if not total or (self.table[list(present)] < 0).any():
            return faults, warnings
        first, last = self.classes[0], self.known
        share = f'{100 * pixels[0] / total:.1f} % of the pixels'
        if present == {0, 255} and not self.reduced and last > 1:
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
        elif self.reduced and self.raw and last - 1 in present and last not in present:
            if pixels[0] * (last + 1) > total:  # more than a label has on average
                warnings.append(
                    f'{self.name}: label {last} never occurs, and reduce_zero_label=True ignores '
                    f'label 0, {share}. If 0 means {first!r}, set reduce_zero_label=False in every '
                    'data set.'
                )
        return faults, warnings

    def _judge_turns(self) -> tuple[list[Fault], list[str]]:
        """Whether label maps follow the orientation of pictures whose sizes do not tell it."""
        if not self.turned:
            return [], []
        pictures = []
        for index, _ in self.turned[:64]:
            try:
                labels = label_map_of(self.loading.run(self._samples[index]))
            except MmattnError:  # it is named as damaged
                continue
            if labels is not None:
                pictures.append((self.pairs[index][0], labels))
        follow, turns_them = turns.follow(pictures), self.loading.image.turns
        if follow is turns_them:
            return [], []
        number, (index, orientation) = len(self.turned), self.turned[0]
        what = (
            f'{number} images have an EXIF orientation, e.g. {self.pairs[index][0]} '
            f'{orientation}, which training {"follows" if turns_them else "ignores"}'
        )
        if follow is None:
            return [], [f'{self.name}: {what}. See that the label maps are drawn in that position.']
        how = 'as the camera stored it' if turns_them else 'as EXIF turns it'
        return [Fault('turned', f'{what}, but the label maps lie on the picture {how}')], []

    def cure(self, kind: str, wrong: Iterable[int] = (), texts: Iterable[str] = ()) -> str:
        """What to do about faults of a kind.

        Args:
            kind: theirs.
            wrong: the labels that are no classes.
            texts: what the faults of the kind say.
        """
        wrong = {*wrong}
        if kind == 'one' or (kind == 'labels' and len(self.classes) == 1):
            return self._two_classes(wrong)
        if kind == 'large':
            return files.remedy_of_large(texts)
        if kind in ('mask', 'palette', 'format') and self._is_read_by_pillow(kind):
            return "Set imdecode_backend='pillow' in LoadAnnotations of every pipeline."
        if kind == 'mask' and self.known == 2:
            return 'Write 1 instead of 255 into each pixel.'
        if kind == 'mask':
            return f'Write the number of its class into each pixel, 0..{self.known - 1}.'
        if kind == 'ignored':
            return f'Is ignore_index or reduce_zero_label set wrongly? {self.remedy}'
        if kind in ('exif', 'turned'):
            return files.other_orientation(self.loading.image)
        if kind == 'thin':
            return 'Leave it and its image out.'
        if kind == 'steps':
            return 'Correct the step, or the file.' if self.loading.own else 'Replace the file.'
        if kind in ('file', 'unknown', 'cut', 'damaged', 'size', 'missing'):
            return 'Replace the file.'
        if kind not in ('labels', 'format'):
            return self.remedy
        if self.suffix.endswith(('_labelIds.png', '_instanceIds.png')):
            return (
                f'Leave seg_map_suffix={self.suffix!r} out: train ids are in *_labelTrainIds.png, '
                'made by: python tools/prepare_data.py cityscapes --root DIR'
            )
        if self.remedy != _HOW_TO_MAKE_STREET and self.kind not in _HOW_TO_GET:
            return self._own_labels(kind, wrong)
        if wrong == {self.known} and not self.reduced and self.kind not in _CONVERTED:
            return self._reduce_or_ignore()
        return f'The labels must be train ids. {self.remedy}'

    def _own_labels(self, kind: str, wrong: set[int]) -> str:
        """What to do about the labels of a data set that nobody but its owner knows."""
        if kind == 'labels' and wrong == {self.known} and not self.reduced and self.raw:
            return self._reduce_or_ignore()
        if self.known == 19 and 18 < max(wrong, default=0) < 34:
            return (
                'They look like the label ids of Cityscapes. Make train ids with: '
                'python tools/prepare_data.py cityscapes --root DIR'
            )
        first = int(self.reduced and self.raw)
        number = f'the number of its class into each pixel, {first}..{self.known - 1 + first}'
        if kind == 'labels':
            return f'Write {number}, or 255 where it has none.'
        return (
            f'Write {number}, as 8 bits and one channel, or load them by a step of your own in '
            'place of LoadAnnotations.'
        )

    def _reduce_or_ignore(self) -> str:
        return (
            'If 0 stands for what has no class, set reduce_zero_label=True in every data set; if '
            f'{self.known} does, write 255 instead.'
        )

    def _two_classes(self, wrong: set[int]) -> str:
        """What to do about a data set of one class."""
        write = ''
        if not wrong <= {1}:
            write = 'Write 0 and 1 into the label maps. '
        elif 1 not in wrong and not self.reduced:
            write = 'Write 1 where that class is and 0 elsewhere into the label maps. '
        leave = 'leave reduce_zero_label out, and ' if self.reduced else ''
        names = ('background', self.classes[0])
        return (
            f'{write}Name both classes in every data set, {leave}let the heads tell them apart: '
            f'metainfo=dict(classes={names}), num_classes=2, out_channels=1, '
            'loss_decode=dict(use_sigmoid=True) in each head.'
        )

    def _is_read_by_pillow(self, kind: str) -> bool:
        """Whether all would be well with label maps that OpenCV reads otherwise than Pillow."""
        if not self.raw or self.loading.label.backend != 'cv2':
            return False
        try:
            _, pixels = files.read_labels(self.pairs[0][1], files.LABELS)
        except files.Unfit:
            return False
        return bool((self.table[pixels > 0] >= 0).all()) and pixels[255] != pixels[1:].sum()

    def lonely(self) -> list[str]:
        """A warning if there are label maps that belong to no image."""
        return [] if self.listed or self.cut else pairing.lonely(self)

    def remedy_of_missing(self, kind: str) -> str:
        """What to do about images that lack something, by the kind of `missing`."""
        return pairing.remedy(self, kind)
