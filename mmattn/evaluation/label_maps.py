"""Intersection over union of label maps saved as PNG, of any classes, without a model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mmattn.datasets.image_io import open_image
from mmattn.errors import DataError, UsageError
from mmattn.progress import track

from .iou import areas, confusion
from .reporting import check_json_target, print_message, write_scores

_INDEX_MODES = ('L', 'P', 'I', 'I;16', 'I;16B', '1')  # image modes whose values are class indices


@dataclass(frozen=True)
class LabelMapScores:
    """Scores of label maps: fractions 0..1; None where there is nothing to score.

    Attributes:
        numbers: `aAcc`, `mIoU`, `mAcc`; the means are over the classes that occur.
        per_class: `IoU.<class>` and `Acc.<class>`.
        images: number of label maps that were compared.
    """

    numbers: dict[str, float | None]
    per_class: dict[str, float | None]
    images: int


def evaluate_label_maps(
    annotations: str | Path,
    predictions: str | Path,
    classes: Sequence[str],
    *,
    ignore: int = 255,
) -> LabelMapScores:
    """Score the label maps of a folder against those of another, sub-folders included.

    Args:
        annotations: folder of label maps with class indices from 0, as training reads them.
        predictions: folder with a label map of the same relative path, except for the suffix, each.
        classes: names of the classes.
        ignore: label that is not scored.

    Raises:
        DataError: a map is missing, damaged, of another size, or holds a value that is no class.
        UsageError: there are no classes, or one occurs twice.
    """
    if not classes or len(set(classes)) < len(classes):
        raise UsageError(f'--classes {",".join(classes)}: name each class once.')
    count = len(classes)
    matrix = np.zeros((count + 1,) * 2, np.int64)
    pairs = _pairs(Path(annotations), Path(predictions))
    for truth, prediction in track(pairs, total=len(pairs), title='scoring'):
        labels, predicted = _read(truth), _read(prediction)
        if labels.shape != predicted.shape:
            sizes = ['x'.join(map(str, array.shape[::-1])) for array in (labels, predicted)]
            raise DataError(
                f'label map {truth} is {sizes[0]}, its prediction {sizes[1]}. Save it at full size.'
            )
        pixels = confusion(predicted, labels, count, ignore)
        scored = labels != ignore
        for path, values, wrong in (
            (truth, labels, pixels[-1]),
            (prediction, predicted, pixels[:-1, -1]),
        ):
            if wrong.any():
                value = int(values[scored & ((values < 0) | (values >= count))].max())
                raise DataError(
                    f'label map {path} holds {value}, allowed: 0..{count - 1} of the {count} '
                    f'classes{f" and {ignore}, which is ignored" if path == truth else ""}. Name '
                    'all classes with --classes, in the order of their indices.'
                )
        matrix += pixels
    return _scores(matrix, classes, len(pairs))


def report_label_maps(
    annotations: str | Path,
    predictions: str | Path,
    classes: Sequence[str],
    *,
    ignore: int = 255,
    json_path: str | Path | None = None,
) -> LabelMapScores:
    """Print the scores of `evaluate_label_maps`, and write them to a JSON file if a path is given.

    Raises:
        DataError, UsageError: as `evaluate_label_maps`.
        WriteError: the file cannot be written.
    """
    check_json_target(json_path, (annotations, predictions))
    scores = evaluate_label_maps(annotations, predictions, classes, ignore=ignore)
    write_scores(json_path, asdict(scores))
    for name in classes:
        values = (scores.per_class[f'{kind}.{name}'] for kind in ('IoU', 'Acc'))
        print('{:<24s} {:<10s} {}'.format(name, *map(_text, values)))
    print()
    for name, value in scores.numbers.items():
        print(f'{name:<24s} {_text(value)}')
    print(f'\n{scores.images} images')
    return scores


def _scores(matrix: np.ndarray, classes: Sequence[str], images: int) -> LabelMapScores:
    intersection, union, _, label = areas(matrix)
    with np.errstate(invalid='ignore', divide='ignore'):
        figures = dict(IoU=intersection / union, Acc=intersection / label)
    per_class = {
        f'{kind}.{name}': _number(value)
        for kind, values in figures.items()
        for name, value in zip(classes, values)
    }
    means = {
        f'm{kind}': _number(np.nanmean(values)) if not np.isnan(values).all() else None
        for kind, values in figures.items()
    }
    total = label.sum()
    accuracy = _number(intersection.sum() / total) if total else None
    return LabelMapScores(dict(aAcc=accuracy, **means), per_class, images)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _text(value: float | None) -> str:
    return 'absent' if value is None else f'{value:.6f}'


def _pairs(annotations: Path, predictions: Path) -> list[tuple[Path, Path]]:
    """Ground truth and prediction of every image."""
    maps_by_flag = {}
    for flag, folder in dict(annotations=annotations, predictions=predictions).items():
        if not folder.is_dir():
            raise DataError(f'{flag}: {folder} is no folder. Name another with --{flag}.')
        maps = sorted(folder.rglob('*.png'))
        if not maps:
            raise DataError(f'{flag}: no *.png below {folder}. Name another with --{flag}.')
        maps_by_flag[flag] = {path.relative_to(folder).with_suffix(''): path for path in maps}
    truths, predicted = maps_by_flag['annotations'], maps_by_flag['predictions']
    missing = [name for name in truths if name not in predicted]
    if missing:
        raise DataError(
            f'predictions: {len(missing)} of {len(truths)} label maps have none below '
            f'{predictions}, e.g. {missing[0]}.png is missing. Predict every image, under the name '
            'of its label map.'
        )
    unpaired = sorted(predicted.keys() - truths.keys())
    if unpaired:
        example = predicted[unpaired[0]]
        print_message(f'warning: {len(unpaired)} predictions have no label map, e.g. {example}.')
    return [(path, predicted[name]) for name, path in truths.items()]


def _read(path: Path) -> np.ndarray:
    with open_image(path, 'label map', 'Replace it.') as image:
        image.load()
        mode, values = image.mode, np.array(image)
    if mode not in _INDEX_MODES or values.ndim != 2:
        raise DataError(
            f'label map {path} is of mode {mode}, which has no class indices. Write one channel of '
            '8 or 16 bits, or a palette.'
        )
    return values.astype(np.int64)
