"""Numbers of a report on detections: of classes, sizes and images, curves, and confusions.

faster_coco_eval, or pycocotools where that is not installed, gives average precision and the points
of the curves; pycocotools matches detections with objects whatever their classes, for the confusion
matrix.
"""

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from typing import NamedTuple

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .coco import backend_of, index_of
from .coco_metric import CocoMetric

IOU = 0.5  # of the curves, the confusion matrix and the images
_DEFAULT_SCORE = 0.3  # least score of what is counted where no detection is right
_SUMMARY_DETECTIONS = 100  # pycocotools: the mean AP is over so many detections an image


@dataclass(frozen=True)
class ScoredDetections:
    """Ground truth and detections as COCO's metric scored them.

    Attributes:
        kind: 'bbox' compares boxes, 'segm' masks.
        images: id -> entry of the annotation file, of the scored images.
        categories: id -> entry, in the order of the labels.
        truth: annotations, with compressed RLE as `segmentation` for 'segm'.
        found: results, each with the area that COCO's libraries count.
        iou_thrs: (T,) IoU thresholds of AP.
        max_dets: ascending numbers of detections an image, the last of which AP is over.
    """

    kind: str
    images: dict[int, dict]
    categories: dict[int, dict]
    truth: list[dict]
    found: list[dict]
    iou_thrs: np.ndarray
    max_dets: list[int]

    @classmethod
    def of_metric(cls, metric: CocoMetric, kind: str) -> 'ScoredDetections':
        """What a metric with `keeps_detections` has scored in `evaluate`.

        Args:
            metric: the metric of the main process.
            kind: 'bbox' or 'segm', one of the metric's.
        """
        index = metric._coco_api
        images = {ident: index.imgs[ident] for ident in metric.img_ids or ()}
        categories = {ident: index.cats[ident] for ident in metric.label_ids}
        truth = [
            _plain_truth(entry, index, kind)
            for entry in index.anns.values()
            if entry['image_id'] in images and entry['category_id'] in categories
        ]
        found = [_plain_result(entry, kind) for entry in metric.detections.get(kind, ())]
        iou_thrs, max_dets = np.atleast_1d(metric.iou_thrs), sorted(metric.proposal_nums)
        return cls(kind, images, categories, truth, found, iou_thrs, max_dets)


class Curve(NamedTuple):
    """Precision of a class as a function of its recall, at `IOU`, for objects of all sizes.

    Attributes:
        recall: (R,) from 0 to 1.
        precision: (R,) highest precision at that recall or more; 0 where it is not reached.
        score: (R,) score of the detection that reaches it; 0 where none does.
    """

    recall: np.ndarray
    precision: np.ndarray
    score: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """(R,) 2 precision recall / (precision + recall), the formula of faster_coco_eval."""
        return 2 * self.precision * self.recall / (self.precision + self.recall + 1e-16)

    @property
    def best(self) -> tuple[float, float]:
        """The largest F1, and the score that gives it."""
        index = int(self.f1.argmax())
        return float(self.f1[index]), float(self.score[index])

    def f1_from(self, scores: np.ndarray) -> np.ndarray:
        """F1 of the detections from each of some scores on, of the same shape."""
        reached = self.precision > 0
        count = np.searchsorted(-self.score[reached], -scores, side='right')
        return np.concatenate([[0.0], self.f1[reached]])[count]


@dataclass(frozen=True)
class DetectionNumbers:
    """Numbers of K classes; fractions from 0 to 1, nan where there is nothing to score.

    Attributes:
        backend: library that counted, with its version.
        classes: K names, in the order of the labels.
        objects: (K, A) objects that count, by class and by size: all sizes, then small to large.
        sizes: A names and ranges of the area in square pixels.
        figures: 'AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large' -> (K,).
        means: the same -> mean over the classes, as COCO's summary has it.
        by_size: 'AP', 'AP50', 'AR' -> (A,) means over the classes.
        curves: of each class; None for one without objects.
        mean_f1: scores in ascending order, and the mean F1 of the classes from each on.
    """

    backend: str
    classes: list[str]
    objects: np.ndarray
    sizes: list[tuple[str, float, float]]
    figures: dict[str, np.ndarray]
    means: dict[str, float]
    by_size: dict[str, np.ndarray]
    curves: list[Curve | None]
    mean_f1: tuple[np.ndarray, np.ndarray]

    @property
    def mean_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Recall, and the mean precision of the classes, whose mean is AP50."""
        curves = [curve for curve in self.curves if curve is not None]
        if not curves:
            return np.zeros(0), np.zeros(0)
        return curves[0].recall, np.mean([curve.precision for curve in curves], 0)

    @property
    def operating_point(self) -> tuple[float, float]:
        """The score from which on detections have the largest mean F1, and that F1."""
        scores, f1 = self.mean_f1
        if not f1.size or not f1.max():
            return _DEFAULT_SCORE, 0.0
        index = int(f1.argmax())
        return float(scores[index]), float(f1[index])


def count_detections(scored: ScoredDetections, backend: str = 'auto') -> DetectionNumbers:
    """Average precision by class and size, and the curves.

    Args:
        scored: ground truth and detections.
        backend: as in `evaluate_coco`.

    Raises:
        UsageError: faster_coco_eval is asked for and not installed.
    """
    name, coco, evaluator = backend_of(backend)
    thresholds = np.union1d(scored.iou_thrs, [IOU])
    with redirect_stdout(StringIO()):
        entries = scored.truth, scored.found
        pair = [index_of(coco, scored.images, scored.categories, part) for part in entries]
        run = evaluator(*pair, scored.kind)
        run.params.iouThrs, run.params.maxDets = thresholds, list(scored.max_dets)
        run.evaluate()
        run.accumulate()
    order = [sorted(scored.categories).index(ident) for ident in scored.categories]
    precision, scores = (run.eval[key][:, :, order] for key in ('precision', 'scores'))
    recall = run.eval['recall'][..., -1]  # (T, K, A)
    averaged = np.isclose(thresholds[:, None], scored.iou_thrs).any(1)
    at = {f'AP{value}': np.isclose(thresholds, value / 100) for value in (50, 75)}
    all_sizes = precision[..., 0, -1]  # (T, R, K)
    parts = {'AP': all_sizes[averaged]} | {key: all_sizes[rows] for key, rows in at.items()}
    names = run.params.areaRngLbl
    for area, size in enumerate(names[1:], 1):
        parts[f'AP_{size}'] = precision[averaged][..., area, -1]
    means = {key: _mean(part) for key, part in parts.items()}
    detections = np.equal(scored.max_dets, _SUMMARY_DETECTIONS)
    means['AP'] = _mean(precision[averaged][..., 0, detections])
    columns = range(len(names))
    by_size = dict(
        AP=np.array([_mean(precision[averaged][..., area, -1]) for area in columns]),
        AP50=np.array([_mean(precision[at['AP50']][..., area, -1]) for area in columns]),
        AR=np.array([_mean(recall[averaged][..., area]) for area in columns]),
    )
    points = all_sizes[at['AP50']][0], scores[at['AP50']][0, ..., 0, -1]  # (R, K) each
    curves = [
        Curve(np.asarray(run.params.recThrs), p, s) if (p > -1).all() else None
        for p, s in zip(points[0].T, points[1].T, strict=True)
    ]
    ranges = [tuple(map(float, limits)) for limits in run.params.areaRng]
    return DetectionNumbers(
        backend=f'{name} {version(name)}',
        classes=[str(category['name']) for category in scored.categories.values()],
        objects=_count_objects(scored, ranges),
        sizes=[(size, *limits) for size, limits in zip(names, ranges)],
        figures={key: np.array([_mean(p) for p in part.T]) for key, part in parts.items()},
        means=means,
        by_size=by_size,
        curves=curves,
        mean_f1=_mean_f1(curves),
    )


class ImageErrors(NamedTuple):
    """Detections and objects of one image, matched at `IOU`.

    Attributes:
        image_id: id of the image.
        right: objects that are found, as their class.
        confused: objects that are found as another class.
        missed: objects that are not found.
        false: detections without an object.
    """

    image_id: int
    right: int
    confused: int
    missed: int
    false: int

    @property
    def f1(self) -> float:
        """F1 of the image; nan without objects and detections."""
        total = 2 * (self.right + self.confused) + self.missed + self.false
        return 2 * self.right / total if total else float('nan')

    @property
    def errors(self) -> int:
        return self.confused + self.missed + self.false


def confuse_detections(
    scored: ScoredDetections, score: float
) -> tuple[np.ndarray, list[ImageErrors]]:
    """Count which class is detected as which, among all images and in each.

    In the order of their scores, detections take the object that they overlap most, at least by
    `IOU`, whatever its class. Crowds, and detections that match them alone, are not counted.

    Args:
        scored: ground truth and detections.
        score: least score of the detections that are counted.

    Returns:
        (K + 1, K + 1) int64, rows are true classes, columns predicted ones; the last column holds
        objects that are missed, the last row detections without an object; and the errors of each
        image.
    """
    found = [entry for entry in scored.found if entry['score'] >= score]
    entries = scored.truth, found
    with redirect_stdout(StringIO()):
        pair = [index_of(COCO, scored.images, scored.categories, part) for part in entries]
        run = COCOeval(*pair, scored.kind)
        params = run.params
        params.useCats, params.iouThrs, params.maxDets = 0, np.array([IOU]), [len(found) or 1]
        params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
        run.evaluate()
    labels = {ident: label for label, ident in enumerate(scored.categories)}
    background = len(labels)
    matrix = np.zeros((background + 1,) * 2, np.int64)
    images = []
    for result in run.evalImgs:
        if result is None:  # neither objects nor detections
            continue
        own = np.zeros_like(matrix)
        for ident, match, ignored in zip(
            result['dtIds'], result['dtMatches'][0], result['dtIgnore'][0], strict=True
        ):
            column = labels[found[ident - 1]['category_id']]
            row = labels[scored.truth[int(match) - 1]['category_id']] if match else background
            own[row, column] += not ignored
        for ident, match, ignored in zip(
            result['gtIds'], result['gtMatches'][0], result['gtIgnore'], strict=True
        ):
            if not match and not ignored:
                own[labels[scored.truth[ident - 1]['category_id']], background] += 1
        right = int(np.trace(own))
        missed, false = int(own[:, background].sum()), int(own[background].sum())
        confused = int(own.sum()) - right - missed - false
        images.append(ImageErrors(result['image_id'], right, confused, missed, false))
        matrix += own
    return matrix, images


def worst_images(images: Sequence[ImageErrors], count: int) -> list[ImageErrors]:
    """The images with the lowest F1, the one with more errors first; those without errors aside."""
    wrong = [image for image in images if image.errors]
    return sorted(wrong, key=lambda image: (image.f1, -image.errors))[:count]


def _plain_truth(entry: dict, index: COCO, kind: str) -> dict:
    """An annotation with what COCO's libraries read; masks as compressed RLE."""
    keys = 'image_id', 'category_id', 'bbox', 'area'
    plain = {key: entry[key] for key in keys} | dict(iscrowd=int(entry.get('iscrowd', 0)))
    return plain | dict(segmentation=index.annToRLE(entry)) if kind == 'segm' else plain


def _plain_result(entry: dict, kind: str) -> dict:
    """A result with the area that pycocotools counts: of the mask for 'segm', else of the box."""
    area = mask.area(entry['segmentation']) if kind == 'segm' else np.prod(entry['bbox'][2:])
    return entry | dict(area=float(area), iscrowd=0)


def _mean(values: np.ndarray) -> float:
    """The mean of the values that are not -1, COCO's sign for nothing to score; nan if all are."""
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else float('nan')


def _count_objects(scored: ScoredDetections, ranges: list[tuple[float, float]]) -> np.ndarray:
    """(K, A) objects by class and size, crowds aside."""
    counts = np.zeros((len(scored.categories), len(ranges)), np.int64)
    labels = {ident: label for label, ident in enumerate(scored.categories)}
    for entry in scored.truth:
        if not entry['iscrowd']:
            fits = [low <= entry['area'] <= high for low, high in ranges]
            counts[labels[entry['category_id']]] += fits
    return counts


def _mean_f1(curves: Sequence[Curve | None]) -> tuple[np.ndarray, np.ndarray]:
    """Every score of the curves in ascending order, and the mean F1 of the classes from it on."""
    present = [curve for curve in curves if curve is not None]
    scores = [curve.score[curve.precision > 0] for curve in present]
    if not any(part.size for part in scores):
        return np.zeros(0), np.zeros(0)
    scores = np.unique(np.concatenate(scores))
    return scores, np.mean([curve.f1_from(scores) for curve in present], 0)
