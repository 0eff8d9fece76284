"""Cityscapes' numbers for label maps saved as PNG, without a model.

Reference code: mcordts/cityscapesScripts, evaluation/evalPixelLevelSemanticLabeling.py. Its
formulas score; pixels are counted here, because its own loop exits at the first invalid file, calls
a function that NumPy is dropping, and sorts every image.
"""

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
from .reporting import check_json_target, print_message, write_scores

_IDS = 34  # label ids are 0..33
_LAST_TRAIN_ID = 18
_KINDS = {'1': '1-bit ', 'P': 'palette ', 'I': '16-bit ', 'I;16': '16-bit ', 'I;16B': '16-bit '}
_LABEL_IDS = 'Write 8-bit label ids, as tools/test.py --out does.'
_REMEDY = {'prediction': _LABEL_IDS, 'ground truth': 'Take the original *_labelIds.png.'}


@dataclass(frozen=True)
class CityscapesScores:
    """Scores of label maps: fractions 0..1; None where there is nothing to score.

    Attributes:
        numbers: the means `IoU_classes`, `iIoU_classes`, `IoU_categories`, `iIoU_categories`.
        per_class: `IoU.<class>` of 19 classes, `iIoU.<class>` of the 8 that have instances.
        per_category: `IoU.<category>` of 7 categories, `iIoU.<category>` of human and vehicle.
        absent: classes without a pixel in the ground truth and in the predictions for it.
        only_predicted: classes that are predicted but not in the ground truth; their IoU is 0.
        pixels: numbers of pixels with a scored label, and of correct ones among them.
        files: numbers of ground truths, predictions and maps of instances.
        version: version of cityscapesscripts.
    """

    numbers: dict[str, float | None]
    per_class: dict[str, float | None]
    per_category: dict[str, float | None]
    absent: list[str]
    only_predicted: list[str]
    pixels: dict[str, int]
    files: dict[str, int]
    version: str


def evaluate_cityscapes(annotations: str | Path, predictions: str | Path) -> CityscapesScores:
    """Score the label maps of a folder against those of another, sub-folders included.

    Args:
        annotations: folder of `<image>_gtFine_labelIds.png`, e.g. gtFine/val; with
            `<image>_gtFine_instanceIds.png` next to each, iIoU is scored, too.
        predictions: folder with one `<image>*.png` each: 8 bits, one channel, label ids 0..33.

    Raises:
        DataError: a folder or file is missing or not valid; names it.
        UsageError: cityscapesscripts is not installed.
    """
    scripts = _cityscapesscripts()
    pairs = _pair_files(Path(annotations), Path(predictions))
    instances = _instance_maps([truth for truth, _ in pairs])
    args = SimpleNamespace(evalLabels=[], avgClassSize=scripts.args.avgClassSize)
    matrix = scripts.generateMatrix(args)
    stats = scripts.generateInstanceStats(args)
    count = partial(_count, sizes=args.avgClassSize)
    with ThreadPoolExecutor(len(sched_getaffinity(0))) as pool:  # decoding frees the GIL
        counts = pool.map(count, *zip(*pairs), instances or [None] * len(pairs))
        for pixels, things in track(counts, total=len(pairs), title='scoring'):
            matrix += pixels.astype(matrix.dtype)
            for thing in things:
                _add_object(stats, args.avgClassSize, *thing)
    scored = label_ids()
    if not matrix[scored].any():
        raise DataError(
            f'annotations {annotations}: no pixel of any class, so there is nothing to score. '
            'The labels of the test split are not public: name gtFine/val.'
        )
    _check_ids(matrix, predictions)
    return _scores(scripts, args, matrix, stats, len(pairs), len(instances or ()))


def report_cityscapes(
    annotations: str | Path, predictions: str | Path, *, json_path: str | Path | None = None
) -> CityscapesScores:
    """Print the scores of `evaluate_cityscapes`, and write them to a JSON file if a path is given.

    Raises:
        DataError, UsageError: as `evaluate_cityscapes`.
        WriteError: the file cannot be written.
    """
    check_json_target(json_path, (annotations, predictions))
    scores = evaluate_cityscapes(annotations, predictions)
    write_scores(json_path, asdict(scores))
    for kind, part in ('classes', scores.per_class), ('categories', scores.per_category):
        print(f'{kind:<24s} {"IoU":<10s} iIoU')
        for key, value in part.items():
            if key.startswith('IoU.'):
                name = key.removeprefix('IoU.')
                print(f'{name:<24s} {_format(value, "absent"):<10s} {_format(part.get(f"i{key}"))}')
        means = (_format(scores.numbers[f'{name}_{kind}']) for name in ('IoU', 'iIoU'))
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
    ids = {label.trainId: label.id for label in _cityscapesscripts().labels}
    return np.array([ids[train_id] for train_id in range(_LAST_TRAIN_ID + 1)], np.uint8)


@cache
def _cityscapesscripts() -> ModuleType:
    """The evaluator module of cityscapesscripts, which reads the environment on import."""
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


def _format(value: float | None, missing: str = '-') -> str:
    return missing if value is None else f'{value:.6f}'


# ---- pairing files -------------------------------------------------------------------------------
def _pair_files(annotations: Path, predictions: Path) -> list[tuple[Path, Path]]:
    """Ground truth and prediction of every image."""
    for name, folder in dict(annotations=annotations, predictions=predictions).items():
        if not folder.is_dir():
            raise DataError(f'{name}: {folder} is no folder. Name another with --{name}.')
    truths = sorted(annotations.rglob('*_labelIds.png'))
    if not truths:
        others = len(list(annotations.rglob('*_labelTrainIds.png')))
        hint = f', only {others} *_labelTrainIds.png' if others else ''
        raise DataError(
            f'annotations: no *_labelIds.png below {annotations}{hint}. The score is of label '
            'ids: name the folder that has them, e.g. gtFine/val, with --annotations.'
        )
    paths = sorted(predictions.rglob('*.png'), key=lambda path: path.name)
    if not paths:
        raise DataError(
            f'predictions: no *.png below {predictions}. Name the folder that tools/test.py --out '
            'wrote with --predictions.'
        )
    names = [path.name for path in paths]
    pairs, missing = [], []
    for truth in truths:
        start = truth.name.removesuffix('_labelIds.png')
        start = start.removesuffix('_gtFine').removesuffix('_gtCoarse')
        matches = []
        for index in range(bisect_left(names, start), len(names)):
            if not names[index].startswith(start):
                break
            if not names[index][len(start)].isdigit():
                matches.append(paths[index])
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
        shared = next(path for path in used if used.count(path) > 1)
        first, second, *_ = (truth for truth, path in pairs if path == shared)
        raise DataError(f'two ground truths of {shared}: {first} and {second}. Name one folder.')
    unpaired = sorted(set(paths) - set(used))
    if unpaired:
        print_message(
            f'warning: {len(unpaired)} predictions have no ground truth, e.g. {unpaired[0]}.'
        )
    return pairs


def _instance_maps(truths: list[Path]) -> list[Path] | None:
    """Map of instances of every ground truth; None, with a message, if one is missing."""
    paths = [truth.with_name(truth.name.replace('labelIds', 'instanceIds')) for truth in truths]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        print_message(
            f'iIoU is left out: {len(missing)} of {len(truths)} ground truths have no map of '
            f'instances, e.g. {missing[0]} is missing.'
        )
    return None if missing else paths


# ---- reading and counting ------------------------------------------------------------------------
def _count(
    truth: Path, prediction: Path, instances: Path | None, sizes: dict[str, float]
) -> tuple[np.ndarray, list[tuple[Any, np.ndarray]]]:
    """Pixels by label and predicted id, (34, 34), and the result of `_count_instances`."""
    labels, predicted = _read_labels(truth, 'ground truth'), _read_labels(prediction, 'prediction')
    _check_size(predicted, f'prediction {prediction}', labels, truth)
    matrix = confusion(predicted, labels, _IDS, ignore_index=-1)
    for path, what, values, wrong in (
        (truth, 'ground truth', labels, matrix[-1]),
        (prediction, 'prediction', predicted, matrix[:, -1]),
    ):
        if wrong.any():
            train_ids = np.isin(np.unique(values), [*range(_LAST_TRAIN_ID + 1), 255]).all()
            hint = 'It seems to hold train ids. ' if train_ids else ''
            raise DataError(
                f'{what} {path} holds {values.max()}, allowed: label ids 0..{_IDS - 1}. {hint}'
                + _REMEDY[what]
            )
    things = _count_instances(instances, truth, predicted, sizes) if instances else []
    return matrix[:-1, :-1], things


def _count_instances(
    path: Path, truth: Path, prediction: np.ndarray, sizes: dict[str, float]
) -> list[tuple[Any, np.ndarray]]:
    """Label in cityscapesscripts, and pixels by predicted id, (34,), of each object."""
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
    objects = []
    for ident in np.flatnonzero(counts.any(1)):
        label = _cityscapesscripts().id2label[int(ident) // 1000]
        if label.ignoreInEval:
            continue
        if label.name not in sizes:
            raise DataError(
                f'map of instances {path} holds {ident}, but {label.name} has none. Replace it.'
            )
        objects.append((label, counts[ident].copy()))
    return objects


def _add_object(stats: dict, sizes: dict[str, float], label: Any, pixels: np.ndarray) -> None:
    """Add an object to the statistics of its class and category, weighted by its size."""
    size = int(pixels.sum())
    weight = sizes[label.name] / float(size)
    entries = [(stats['classes'][label.name], [label.id])]
    if label.category in stats['categories']:
        category = stats['categories'][label.category]
        entries.append((category, category['labelIds']))
    for entry, ids in entries:
        hits = int(pixels[ids].sum())
        entry['tp'] += hits
        entry['fn'] += size - hits
        entry['tpWeighted'] += hits * weight
        entry['fnWeighted'] += (size - hits) * weight


def _read_labels(path: Path, what: str) -> np.ndarray:
    """Labels (H, W) uint8 of a PNG with one channel of 8 bits."""
    image = _read(path, what)
    values, valid = np.array(image), image.mode == 'L'
    if image.mode == 'P':  # a grey palette, as mmseg's CityscapesMetric writes
        used, palette = np.unique(values), np.reshape(image.getpalette('RGB'), (-1, 3))
        valid = used[-1] < len(palette) and (palette[used] == used[:, None]).all()
    if image.format != 'PNG' or not valid:
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


# ---- scores from counts --------------------------------------------------------------------------
def _check_ids(matrix: np.ndarray, predictions: str | Path) -> None:
    """Refuse predictions that are train ids; warn if they could be."""
    ids = label_ids()
    predicted_ids = set(np.flatnonzero(matrix.sum(0)).tolist())
    later = ids[ids > _LAST_TRAIN_ID]
    if max(predicted_ids) > _LAST_TRAIN_ID or not matrix[later].any():
        return
    as_labels, as_train_ids = (
        int(matrix[ids, columns].sum()) for columns in (ids, np.arange(_LAST_TRAIN_ID + 1))
    )
    what = f'predictions {predictions} hold no label id above {_LAST_TRAIN_ID}'
    if as_train_ids > as_labels and len(predicted_ids - set(ids.tolist())) > 1:
        total = matrix[ids].sum()
        raise DataError(
            f'{what}, and fit better as train ids: so read, {100 * as_train_ids / total:.1f} % of '
            f'the pixels are right, else {100 * as_labels / total:.1f} %. {_LABEL_IDS}'
        )
    print_message(f'warning: {what}, but the ground truth does. Are they train ids? {_LABEL_IDS}')


def _scores(
    scripts: ModuleType,
    args: SimpleNamespace,
    matrix: np.ndarray,
    stats: dict,
    images: int,
    instances: int,
) -> CityscapesScores:
    """Apply the formulas of cityscapesscripts to the counts of all images."""
    labels = [label for label in scripts.labels if label.id >= 0 and not label.ignoreInEval]
    categories = list(dict.fromkeys(label.category for label in labels))
    classes = {x.name: scripts.getIouScoreForLabel(x.id, matrix, args) for x in labels}
    groups = {x: scripts.getIouScoreForCategory(x, matrix, args) for x in categories}
    things = {
        x.name: scripts.getInstanceIouScoreForLabel(x.id, matrix, stats, args)
        for x in labels
        if x.name in stats['classes']
    }
    thing_groups = {
        x: scripts.getInstanceIouScoreForCategory(x, matrix, stats, args)
        for x in categories
        if x in stats['categories']
    }
    if not instances:
        things, thing_groups = (dict.fromkeys(x, float('nan')) for x in (things, thing_groups))
    average = partial(scripts.getScoreAverage, args=args)
    numbers = dict(
        IoU_classes=average(classes),
        iIoU_classes=average(things),
        IoU_categories=average(groups),
        iIoU_categories=average(thing_groups),
    )
    absent = [name for name, value in classes.items() if isnan(value)]
    only_predicted = [x.name for x in labels if x.name not in absent and not matrix[x.id].any()]
    if absent:
        print_message(
            f'warning: absent from ground truth and predictions of {images} images, the mean is '
            f'over the other {len(classes) - len(absent)} classes: {", ".join(absent)}'
        )
    if only_predicted:
        print_message(
            f'warning: predicted, but in no ground truth of {images} images, so the IoU of 0 '
            f'counts in the mean: {", ".join(only_predicted)}'
        )
    scored = [label.id for label in labels]
    return CityscapesScores(
        numbers=_nan_to_none(numbers),
        per_class=_nan_to_none(_prefixed('IoU', classes) | _prefixed('iIoU', things)),
        per_category=_nan_to_none(_prefixed('IoU', groups) | _prefixed('iIoU', thing_groups)),
        absent=absent,
        only_predicted=only_predicted,
        pixels=dict(counted=int(matrix[scored].sum()), right=int(matrix[scored, scored].sum())),
        files=dict(annotations=images, predictions=images, instances=instances),
        version=version('cityscapesscripts'),
    )


def _prefixed(metric: str, values: dict[str, float]) -> dict[str, float]:
    return {f'{metric}.{name}': value for name, value in values.items()}


def _nan_to_none(values: dict[str, float]) -> dict[str, float | None]:
    """Values with None in place of nan, which JSON does not have."""
    return {name: None if isnan(v) else float(v) for name, v in values.items()}
