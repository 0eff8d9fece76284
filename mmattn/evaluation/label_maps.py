"""Intersection over union of label maps saved as PNG, of any classes, without a model."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mmattn.datasets.image_io import open_image
from mmattn.errors import DataError, UsageError
from mmattn.progress import track

from .iou import areas, confusion
from .scores_file import check_target, write_scores

_INDICES = ('L', 'P', 'I', 'I;16', 'I;16B', '1')  # modes whose values are class indices


@dataclass(frozen=True)
class Scores:
    """Fractions 0..1; None where there is nothing to score.

    Attributes:
        numbers: `aAcc`, `mIoU`, `mAcc`; the means are over the classes that occur.
        per_class: `IoU.<class>` and `Acc.<class>`.
        images: how many maps were compared.
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
) -> Scores:
    """Score the label maps of a folder against those of another, sub-folders included.

    Args:
        annotations: label maps with class indices from 0, as training reads them.
        predictions: one map of the same relative path, but for the suffix, for each.
        classes: their names.
        ignore: the label that is not scored.

    Raises:
        DataError: a map is missing, damaged, of another size, or holds what is no class.
        UsageError: no classes, or one twice.
    """
    if not classes or len(set(classes)) < len(classes):
        raise UsageError(f'--classes {",".join(classes)}: name each class once.')
    count = len(classes)
    matrix = np.zeros((count + 1,) * 2, np.int64)
    pairs = _pairs(Path(annotations), Path(predictions))
    for truth, prediction in track(pairs, total=len(pairs), title='scoring'):
        labels, found = _read(truth), _read(prediction)
        if labels.shape != found.shape:
            sizes = ['x'.join(map(str, one.shape[::-1])) for one in (labels, found)]
            raise DataError(
                f'label map {truth} is {sizes[0]}, its prediction {sizes[1]}. Save it at full size.'
            )
        one = confusion(found, labels, count, ignore)
        for path, values, wrong, which in (
            (truth, labels, one[-1], labels != ignore),
            (prediction, found, one[:-1, -1], labels != ignore),
        ):
            if wrong.any():
                odd = int(values[which & ((values < 0) | (values >= count))].max())
                raise DataError(
                    f'label map {path} holds {odd}, allowed: 0..{count - 1} of the {count} classes'
                    f'{f" and {ignore}, which is ignored" if path == truth else ""}. Name all '
                    'classes with --classes, in the order of their indices.'
                )
        matrix += one
    return _scores(matrix, classes, len(pairs))


def report(
    annotations: str | Path,
    predictions: str | Path,
    classes: Sequence[str],
    *,
    ignore: int = 255,
    json_path: str | Path | None = None,
) -> Scores:
    """Print what `evaluate_label_maps` returns, and write it to a JSON file if asked.

    Raises:
        DataError, UsageError: as `evaluate_label_maps`.
        WriteError: the file cannot be written.
    """
    check_target(json_path, (annotations, predictions))
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


def _scores(matrix: np.ndarray, classes: Sequence[str], images: int) -> Scores:
    both, union, _, label = areas(matrix)
    with np.errstate(invalid='ignore', divide='ignore'):
        figures = dict(IoU=both / union, Acc=both / label)
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
    return Scores(
        dict(aAcc=_number(both.sum() / total) if total else None, **means), per_class, images
    )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _text(value: float | None) -> str:
    return 'absent' if value is None else f'{value:.6f}'


def _pairs(annotations: Path, predictions: Path) -> list[tuple[Path, Path]]:
    """Truth and prediction of every image."""
    found = {}
    for flag, folder in dict(annotations=annotations, predictions=predictions).items():
        if not folder.is_dir():
            raise DataError(f'{flag}: {folder} is no folder. Name another with --{flag}.')
        maps = sorted(folder.rglob('*.png'))
        if not maps:
            raise DataError(f'{flag}: no *.png below {folder}. Name another with --{flag}.')
        found[flag] = {path.relative_to(folder).with_suffix(''): path for path in maps}
    truths, others = found['annotations'], found['predictions']
    missing = [name for name in truths if name not in others]
    if missing:
        raise DataError(
            f'predictions: {len(missing)} of {len(truths)} label maps have none below '
            f'{predictions}, e.g. {missing[0]}.png is missing. Predict every image, under the name '
            'of its label map.'
        )
    rest = sorted(others.keys() - truths.keys())
    if rest:
        print(
            f'warning: {len(rest)} predictions have no label map, e.g. {others[rest[0]]}.',
            file=sys.stderr,
        )
    return [(path, others[name]) for name, path in truths.items()]


def _read(path: Path) -> np.ndarray:
    with open_image(path, 'label map', 'Replace it.') as image:
        image.load()
        mode, values = image.mode, np.array(image)
    if mode not in _INDICES or values.ndim != 2:
        raise DataError(
            f'label map {path} is of mode {mode}, which has no class indices. Write one channel of '
            '8 or 16 bits, or a palette.'
        )
    return values.astype(np.int64)
