"""Cityscapes' numbers for label maps saved as PNG, without a model.

Reference code: mcordts/cityscapesScripts, evaluation/evalPixelLevelSemanticLabeling.py. Its
formulas score; the pixels are counted here, as its own loop ends the process at the first odd file,
calls a function that NumPy is dropping, and sorts every image.
"""

import sys
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from math import isnan
from os import sched_getaffinity
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from mmattn.datasets.image_io import open_image
from mmattn.errors import DataError, UsageError
from mmattn.progress import track

from .iou import confusion
from .scores_file import check_target, write_scores

_IDS = 34  # label ids are 0..33
_LAST_TRAIN_ID = 18
_KINDS = {'1': '1-bit ', 'P': 'palette ', 'I': '16-bit ', 'I;16': '16-bit ', 'I;16B': '16-bit '}
_LABEL_IDS = 'Write 8-bit label ids, as tools/test.py --out does.'
_REMEDY = {'prediction': _LABEL_IDS, 'ground truth': 'Take the original *_labelIds.png.'}


@dataclass(frozen=True)
class Scores:
    """Fractions 0..1; None where there is nothing to score.

    Attributes:
        numbers: the means `IoU_classes`, `iIoU_classes`, `IoU_categories`, `iIoU_categories`.
        per_class: `IoU.<class>` of 19 classes, `iIoU.<class>` of the 8 that have instances.
        per_category: `IoU.<category>` of 7 categories, `iIoU.<category>` of human and vehicle.
        absent: classes without a pixel in the ground truth and among what is predicted there.
        only_predicted: classes that are not in the ground truth; their IoU is 0.
        pixels: whose label counts, and how many of them are right.
        files: how many ground truths, predictions and maps of instances were read.
        version: of cityscapesscripts.
    """

    numbers: dict[str, float | None]
    per_class: dict[str, float | None]
    per_category: dict[str, float | None]
    absent: list[str]
    only_predicted: list[str]
    pixels: dict[str, int]
    files: dict[str, int]
    version: str


def evaluate_cityscapes(annotations: str | Path, predictions: str | Path) -> Scores:
    """Score the label maps of a folder against those of another, sub-folders included.

    Args:
        annotations: has `<image>_gtFine_labelIds.png`, e.g. gtFine/val; with
            `<image>_gtFine_instanceIds.png` beside each, iIoU is scored, too.
        predictions: has one `<image>*.png` for each: 8 bits, a channel, label ids 0..33.

    Raises:
        DataError: a folder or file is missing or not valid; names it.
        UsageError: cityscapesscripts is not installed.
    """
    official = _official()
    pairs = _pairs(Path(annotations), Path(predictions))
    instances = _instance_maps([truth for truth, _ in pairs])
    args = SimpleNamespace(evalLabels=[], avgClassSize=official.args.avgClassSize)
    matrix = official.generateMatrix(args)
    stats = official.generateInstanceStats(args)
    count = partial(_count, sizes=args.avgClassSize)
    with ThreadPoolExecutor(len(sched_getaffinity(0))) as pool:  # decoding frees the GIL
        counts = pool.map(count, *zip(*pairs), instances or [None] * len(pairs))
        for pixels, things in track(counts, total=len(pairs), title='scoring'):
            matrix += pixels.astype(matrix.dtype)
            for thing in things:
                _add(stats, args.avgClassSize, *thing)
    scored = label_ids()
    if not matrix[scored].any():
        raise DataError(
            f'annotations {annotations}: no pixel of any class, so there is nothing to score. '
            'The labels of the test split are not public: name gtFine/val.'
        )
    _check_ids(matrix, predictions)
    return _scores(official, args, matrix, stats, len(pairs), len(instances or ()))


def report(
    annotations: str | Path, predictions: str | Path, *, json_path: str | Path | None = None
) -> Scores:
    """Print what `evaluate_cityscapes` returns, and write it to a JSON file if asked.

    Raises:
        DataError, UsageError: as `evaluate_cityscapes`.
        WriteError: the file cannot be written.
    """
    check_target(json_path, (annotations, predictions))
    scores = evaluate_cityscapes(annotations, predictions)
    write_scores(json_path, asdict(scores))
    for kind, part in ('classes', scores.per_class), ('categories', scores.per_category):
        print(f'{kind:<24s} {"IoU":<10s} iIoU')
        for key, value in part.items():
            if key.startswith('IoU.'):
                name = key.removeprefix('IoU.')
                print(f'{name:<24s} {_text(value, "absent"):<10s} {_text(part.get(f"i{key}"))}')
        means = (_text(scores.numbers[f'{name}_{kind}']) for name in ('IoU', 'iIoU'))
        print('{:<24s} {:<10s} {}\n'.format('mean', *means))
    right = scores.pixels['right'] / scores.pixels['counted']
    print(f'{scores.files["predictions"]} images, {100 * right:.2f} % of their pixels are right')
    print(f'scored by cityscapesscripts {scores.version}')
    return scores


@cache
def label_ids() -> np.ndarray:
    """The label id of each of the 19 train ids, (19,) uint8.

    Raises:
        UsageError: cityscapesscripts is not installed.
    """
    found = {label.trainId: label.id for label in _official().labels}
    return np.array([found[train_id] for train_id in range(_LAST_TRAIN_ID + 1)], np.uint8)


@cache
def _official() -> ModuleType:
    """The evaluator of cityscapesscripts. It reads the environment when it is imported."""
    try:
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling
    except ImportError as error:
        raise UsageError(
            f'cityscapesscripts cannot be imported: {error}. Run: pip install cityscapesscripts'
        ) from error
    except ValueError as error:  # CITYSCAPES_EXPORT_DIR, which nothing here uses
        raise UsageError(
            f'cityscapesscripts does not start: {error}. Unset the variable.'
        ) from error
    return evalPixelLevelSemanticLabeling


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _text(value: float | None, nothing: str = '-') -> str:
    return nothing if value is None else f'{value:.6f}'


# ---- which file belongs to which -----------------------------------------------------------------
def _pairs(annotations: Path, predictions: Path) -> list[tuple[Path, Path]]:
    """Ground truth and prediction of every image."""
    for name, folder in dict(annotations=annotations, predictions=predictions).items():
        if not folder.is_dir():
            raise DataError(f'{name}: {folder} is no folder. Name another with --{name}.')
    truths = sorted(annotations.rglob('*_labelIds.png'))
    if not truths:
        others = len(list(annotations.rglob('*_labelTrainIds.png')))
        found = f', only {others} *_labelTrainIds.png' if others else ''
        raise DataError(
            f'annotations: no *_labelIds.png below {annotations}{found}. The score is of label '
            'ids: name the folder that has them, e.g. gtFine/val, with --annotations.'
        )
    found = sorted(predictions.rglob('*.png'), key=lambda path: path.name)
    if not found:
        raise DataError(
            f'predictions: no *.png below {predictions}. Name the folder that tools/test.py --out '
            'wrote with --predictions.'
        )
    names = [path.name for path in found]
    pairs, missing = [], []
    for truth in truths:
        start = truth.name.removesuffix('_labelIds.png')
        start = start.removesuffix('_gtFine').removesuffix('_gtCoarse')
        matches = []
        for index in range(bisect_left(names, start), len(names)):
            if not names[index].startswith(start):
                break
            if not names[index][len(start)].isdigit():
                matches.append(found[index])
        if len(matches) > 1:
            raise DataError(
                f'{len(matches)} predictions of {truth.name}: {matches[0]} and {matches[1]}. '
                'Remove all but one.'
            )
        if matches:
            pairs.append((truth, matches[0]))
        else:
            missing.append(f'{start}*.png')
    if missing:
        raise DataError(
            f'predictions: {len(missing)} of {len(truths)} ground truths have none below '
            f'{predictions}, e.g. {missing[0]} is missing. Predict every image.'
        )
    used = [prediction for _, prediction in pairs]
    if len(set(used)) < len(used):
        twice = next(path for path in used if used.count(path) > 1)
        first, second, *_ = (truth for truth, path in pairs if path == twice)
        raise DataError(f'two ground truths of {twice}: {first} and {second}. Name one folder.')
    rest = sorted(set(found) - set(used))
    if rest:
        _say(f'warning: {len(rest)} predictions have no ground truth, e.g. {rest[0]}.')
    return pairs


def _instance_maps(truths: list[Path]) -> list[Path] | None:
    """Of every ground truth; None, with a sentence, if one is missing."""
    paths = [truth.with_name(truth.name.replace('labelIds', 'instanceIds')) for truth in truths]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        _say(
            f'iIoU is left out: {len(missing)} of {len(truths)} ground truths have no map of '
            f'instances, e.g. {missing[0]} is missing.'
        )
    return None if missing else paths


# ---- reading and counting ------------------------------------------------------------------------
def _count(
    truth: Path, prediction: Path, instances: Path | None, sizes: dict[str, float]
) -> tuple[np.ndarray, list[tuple[Any, np.ndarray]]]:
    """Pixels by label and predicted id, (34, 34), and what `_instances` finds."""
    labels, found = _label_map(truth, 'ground truth'), _label_map(prediction, 'prediction')
    _check_size(found, f'prediction {prediction}', labels, truth)
    matrix = confusion(found, labels, _IDS, ignore_index=-1)
    for path, what, values, wrong in (
        (truth, 'ground truth', labels, matrix[-1]),
        (prediction, 'prediction', found, matrix[:, -1]),
    ):
        if wrong.any():
            train_ids = np.isin(np.unique(values), [*range(_LAST_TRAIN_ID + 1), 255]).all()
            hint = 'It seems to hold train ids. ' if train_ids else ''
            raise DataError(
                f'{what} {path} holds {values.max()}, allowed: label ids 0..{_IDS - 1}. {hint}'
                + _REMEDY[what]
            )
    return matrix[:-1, :-1], _instances(instances, truth, found, sizes) if instances else []


def _instances(
    path: Path, truth: Path, prediction: np.ndarray, sizes: dict[str, float]
) -> list[tuple[Any, np.ndarray]]:
    """Of each object: its label in cityscapesscripts, and its pixels by predicted id, (34,)."""
    ids = np.array(_read(path, 'map of instances'))
    if ids.ndim != 2 or ids.dtype.kind not in 'iu':
        raise DataError(f'map of instances {path} is no 16-bit PNG of one channel. Replace it.')
    _check_size(ids, f'map of instances {path}', prediction, truth)
    if ids.min() < 0 or ids.max() >= 1000 * _IDS:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise DataError(f'map of instances {path} holds {wrong}, allowed: 0..33999. Replace it.')
    things = ids > 1000
    pairs = ids[things].astype(np.int64) * _IDS + prediction[things]
    counts = np.bincount(pairs, minlength=1000 * _IDS * _IDS).reshape(-1, _IDS)
    found = []
    for ident in np.flatnonzero(counts.any(1)):
        label = _official().id2label[int(ident) // 1000]
        if label.ignoreInEval:
            continue
        if label.name not in sizes:
            raise DataError(
                f'map of instances {path} holds {ident}, but {label.name} has none. Replace it.'
            )
        found.append((label, counts[ident].copy()))
    return found


def _add(stats: dict, sizes: dict[str, float], label: Any, pixels: np.ndarray) -> None:
    """Add an object to the statistics of its class and category, weighted by its size."""
    size = int(pixels.sum())
    weight = sizes[label.name] / float(size)
    parts = [(stats['classes'][label.name], [label.id])]
    if label.category in stats['categories']:
        category = stats['categories'][label.category]
        parts.append((category, category['labelIds']))
    for part, right in parts:
        hits = int(pixels[right].sum())
        part['tp'] += hits
        part['fn'] += size - hits
        part['tpWeighted'] += hits * weight
        part['fnWeighted'] += (size - hits) * weight


def _label_map(path: Path, what: str) -> np.ndarray:
    """(H, W) uint8 of a PNG with one channel of 8 bits."""
    image = _read(path, what)
    values, sound = np.array(image), image.mode == 'L'
    if image.mode == 'P':  # of greys, as mmseg's CityscapesMetric writes
        used, palette = np.unique(values), np.reshape(image.getpalette('RGB'), (-1, 3))
        sound = used[-1] < len(palette) and (palette[used] == used[:, None]).all()
    if image.format != 'PNG' or not sound:
        kind = _KINDS.get(image.mode, 'colour ') if image.format == 'PNG' else ''
        raise DataError(
            f'{what} {path} is a {kind}{image.format}, allowed: a PNG with one channel of 8 bits. '
            + _REMEDY[what]
        )
    return values


def _read(path: Path, what: str) -> Image.Image:
    with open_image(path, what, 'Replace it.') as image:
        image.load()
        return image


def _check_size(values: np.ndarray, what: str, others: np.ndarray, truth: Path) -> None:
    if values.shape != others.shape:
        size, other = ('x'.join(map(str, array.shape[1::-1])) for array in (values, others))
        raise DataError(
            f'{what} is {size}, its ground truth {truth.name} {other}. Save it at full size.'
        )


# ---- what the counts say -------------------------------------------------------------------------
def _check_ids(matrix: np.ndarray, predictions: str | Path) -> None:
    """Raise if the predictions are train ids; warn if they could be."""
    ids = label_ids()
    found = set(np.flatnonzero(matrix.sum(0)).tolist())
    later = ids[ids > _LAST_TRAIN_ID]
    if max(found) > _LAST_TRAIN_ID or not matrix[later].any():
        return
    as_labels, as_train_ids = (
        int(matrix[ids, columns].sum()) for columns in (ids, np.arange(_LAST_TRAIN_ID + 1))
    )
    what = f'predictions {predictions} hold no label id above {_LAST_TRAIN_ID}'
    if as_train_ids > as_labels and len(found - set(ids.tolist())) > 1:
        total = matrix[ids].sum()
        raise DataError(
            f'{what}, and fit better as train ids: so read, {100 * as_train_ids / total:.1f} % of '
            f'the pixels are right, else {100 * as_labels / total:.1f} %. {_LABEL_IDS}'
        )
    _say(f'warning: {what}, but the ground truth does. Are they train ids? {_LABEL_IDS}')


def _scores(
    official: ModuleType,
    args: SimpleNamespace,
    matrix: np.ndarray,
    stats: dict,
    images: int,
    instances: int,
) -> Scores:
    """cityscapesscripts' formulas on the counts of all images."""
    labels = [label for label in official.labels if label.id >= 0 and not label.ignoreInEval]
    categories = list(dict.fromkeys(label.category for label in labels))
    classes = {x.name: official.getIouScoreForLabel(x.id, matrix, args) for x in labels}
    groups = {x: official.getIouScoreForCategory(x, matrix, args) for x in categories}
    things = {
        x.name: official.getInstanceIouScoreForLabel(x.id, matrix, stats, args)
        for x in labels
        if x.name in stats['classes']
    }
    thing_groups = {
        x: official.getInstanceIouScoreForCategory(x, matrix, stats, args)
        for x in categories
        if x in stats['categories']
    }
    if not instances:
        things, thing_groups = (dict.fromkeys(x, float('nan')) for x in (things, thing_groups))
    average = partial(official.getScoreAverage, args=args)
    numbers = dict(
        IoU_classes=average(classes),
        iIoU_classes=average(things),
        IoU_categories=average(groups),
        iIoU_categories=average(thing_groups),
    )
    absent = [name for name, value in classes.items() if isnan(value)]
    only_predicted = [x.name for x in labels if x.name not in absent and not matrix[x.id].any()]
    if absent:
        _say(
            f'warning: absent from ground truth and predictions of {images} images, the mean is '
            f'over the other {len(classes) - len(absent)} classes: {", ".join(absent)}'
        )
    if only_predicted:
        _say(
            f'warning: predicted, but in no ground truth of {images} images, so the IoU of 0 '
            f'counts in the mean: {", ".join(only_predicted)}'
        )
    scored = [label.id for label in labels]
    return Scores(
        numbers=_none(numbers),
        per_class=_none(_named('IoU', classes) | _named('iIoU', things)),
        per_category=_none(_named('IoU', groups) | _named('iIoU', thing_groups)),
        absent=absent,
        only_predicted=only_predicted,
        pixels=dict(counted=int(matrix[scored].sum()), right=int(matrix[scored, scored].sum())),
        files=dict(annotations=images, predictions=images, instances=instances),
        version=version('cityscapesscripts'),
    )


def _named(metric: str, values: dict[str, float]) -> dict[str, float]:
    return {f'{metric}.{name}': value for name, value in values.items()}


def _none(values: dict[str, float]) -> dict[str, float | None]:
    """With None for nan, which JSON has not."""
    return {name: None if isnan(v) else float(v) for name, v in values.items()}
