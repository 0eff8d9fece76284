"""The part of a report that is about detections: tables, curves, confusions and worst images."""

from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask

from mmattn.visualization.comparison import compare_objects, save_picture
from mmattn.visualization.objects import Objects
from mmattn.visualization.report_page import Legend, Picture, Pictures, Section, Table, Text
from mmattn.visualization.report_plots import (
    line_colours,
    plot_f1,
    plot_precision_recall,
)

from .coco_metric import CocoMetric
from .detection_numbers import (
    IOU,
    DetectionNumbers,
    ImageErrors,
    ScoredDetections,
    confuse_detections,
    count_detections,
    worst_images,
)
from .image_source import ImageSource
from .report_parts import BACKGROUND, confusion_parts, fraction, shrunk

_KINDS = {'bbox': 'boxes', 'segm': 'masks'}
_FIGURES = ('AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large')


class DetectionSection:
    """What a report says of the boxes or the masks that a metric has scored.

    Args:
        metric: a metric with `keeps_detections`, after `evaluate`.
        kind: 'bbox' or 'segm', one of the metric's.
        paths: image id -> path of the image.
    """

    def __init__(self, metric: CocoMetric, kind: str, paths: dict) -> None:
        self.kind, self.paths = kind, paths
        self.scored = ScoredDetections.of_metric(metric, kind)
        self.numbers = count_detections(self.scored)
        self.score, self.best_f1 = self.numbers.operating_point
        self.matrix, self.images = confuse_detections(self.scored, self.score)

    @property
    def title(self) -> str:
        return _KINDS[self.kind]

    def write(self, folder: Path, name: str) -> list:
        """Write the plots as `pictures/<name>_*.png`, and return the parts of the section."""
        numbers = self.numbers
        labels = [*numbers.classes, BACKGROUND]
        point = (
            f'Detections with a score of {self.score:.3f} or more are counted. With that score the '
            f'mean F1 of the classes is largest, {self.best_f1:.3f}.'
            if self.best_f1
            else f'Detections with a score of {self.score:.3f} or more are counted; no score gives '
            'a class an F1 above 0.'
        )
        return [
            Text(f'Counted by {numbers.backend}. A dash is where there is nothing to score.'),
            self._class_table(),
            self._size_table(),
            *self._curves(folder, name),
            Text(
                f'{point} In the order of their scores, they take the object that they overlap '
                f'most, at an IoU of {IOU} or more, whatever its class. Objects in the column '
                f'{BACKGROUND} are missed, detections in the row {BACKGROUND} are false. Crowds '
                'are not counted.'
            ),
            *confusion_parts(self.matrix, labels, labels, folder, name),
        ]

    def worst(self, folder: Path, source: ImageSource, prefix: str, count: int) -> Section:
        """Draw the worst images to `pictures/<prefix>_<rank>.jpg`, and return their section."""
        worst = worst_images(self.images, count)
        wrong = sum(image.errors > 0 for image in self.images)
        entries = self._entries({image.image_id for image in worst})
        pictures = []
        for rank, image in enumerate(worst, 1):
            path = self.paths[image.image_id]
            file = f'pictures/{prefix}_{rank:02d}.jpg'
            save_picture(folder / file, self._draw(path, source, *entries[image.image_id]))
            alt = f'truth and prediction for {Path(path).name}'
            pictures.append(Picture(file, alt, f'{rank}. {_caption(image)}', path))
        text = (
            f'{wrong} of {len(self.scored.images)} images have an error at a score of '
            f'{self.score:.3f}. These have the lowest F1, with more errors first where it is equal.'
            ' Numbers in the pictures are scores in percent.'
        )
        return Section(f'worst images, {self.title}', [Text(text), Pictures(pictures, wide=True)])

    def as_dict(self) -> dict:
        """All numbers, with arrays."""
        numbers = self.numbers
        curves = {
            name: curve and dict(curve._asdict(), f1=curve.f1)
            for name, curve in zip(numbers.classes, numbers.curves)
        }
        return dict(
            backend=numbers.backend,
            classes=numbers.classes,
            objects=numbers.objects,
            sizes=numbers.sizes,
            per_class=numbers.figures,
            means=numbers.means,
            by_size=numbers.by_size,
            curves=curves,
            mean_curve=dict(zip(('recall', 'precision'), numbers.mean_curve)),
            mean_f1=dict(zip(('score', 'f1'), numbers.mean_f1)),
            score=self.score,
            confusion=self.matrix,
            images=[
                dict(path=self.paths[image.image_id], **image._asdict(), f1=image.f1)
                for image in self.images
            ],
        )

    def _class_table(self) -> Table:
        numbers: DetectionNumbers = self.numbers
        header = ['class', 'objects', *(key.replace('_', ' ') for key in _FIGURES)]
        rows = []
        for label, (name, curve) in enumerate(zip(numbers.classes, numbers.curves)):
            f1, score = curve.best if curve else (float('nan'), 0.0)
            best = fraction(f1), fraction(score) if f1 > 0 else '-'
            figures = (fraction(numbers.figures[key][label]) for key in _FIGURES)
            rows.append([name, str(numbers.objects[label, 0]), *figures, *best])
        means = (fraction(numbers.means[key]) for key in _FIGURES)
        best = fraction(self.best_f1), fraction(self.score)
        rows.append(['mean of the classes', str(numbers.objects[:, 0].sum()), *means, *best])
        return Table('per class', [*header, 'best F1', 'at score'], rows)

    def _size_table(self) -> Table:
        numbers, rows = self.numbers, []
        for area, (name, low, high) in enumerate(numbers.sizes[1:], 1):
            last = area == len(numbers.sizes) - 1
            limits = f'{low:.0f} and more' if last else f'{low:.0f} to {high:.0f}'
            values = (fraction(numbers.by_size[key][area]) for key in ('AP', 'AP50', 'AR'))
            rows.append([name, limits, str(numbers.objects[:, area].sum()), *values])
        return Table(
            'by object size', ['size', 'area in pixels', 'objects', 'AP', 'AP50', 'AR'], rows
        )

    def _curves(self, folder: Path, name: str) -> list:
        numbers = self.numbers
        precision_recall = [curve and (curve.recall, curve.precision) for curve in numbers.curves]
        f1 = [
            curve and (curve.score[curve.precision > 0], curve.f1[curve.precision > 0])
            for curve in numbers.curves
        ]
        files = [f'pictures/{name}_{plot}.png' for plot in ('precision_recall', 'f1')]
        plot_precision_recall(precision_recall, numbers.mean_curve, folder / files[0])
        mark = self.score if self.best_f1 else None
        plot_f1(f1, numbers.mean_f1, folder / files[1], mark)
        colours = line_colours(len(numbers.classes))
        if colours:
            lines = Legend([('#000000', 'mean of the classes'), *zip(colours, numbers.classes)])
        else:
            lines = Text(f'Black: mean of the {len(numbers.classes)} classes. Grey: each of them.')
        where = f'at an IoU of {IOU}, {self.title}'
        return [
            Pictures(
                [
                    Picture(files[0], 'curves of precision', f'Precision over recall {where}.'),
                    Picture(files[1], 'curves of F1', f'F1 over the least score {where}.'),
                ]
            ),
            lines,
        ]

    def _entries(self, ids: set) -> dict:
        """Image id -> its annotations and its counted results, of some images."""
        entries = defaultdict(lambda: ([], []))
        for index, part in enumerate((self.scored.truth, self.scored.found)):
            for entry in part:
                if entry['image_id'] in ids and entry.get('score', self.score) >= self.score:
                    entries[entry['image_id']][index].append(entry)
        return entries

    def _draw(self, path: str, source: ImageSource, truth: list, found: list) -> np.ndarray:
        image = source.read(path)
        small, scale = shrunk(image)
        found = sorted(found, key=lambda entry: -entry['score'])
        parts = (self._objects(part, small.shape[:2], scale) for part in (truth, found))
        return compare_objects(small, *parts, **source.style(path))

    def _objects(self, entries: list[dict], size: tuple[int, int], scale: float) -> Objects:
        """Annotations or results on a picture of a size, `scale` times as large as the image."""
        labels = {ident: label for label, ident in enumerate(self.scored.categories)}
        boxes = np.array([entry['bbox'] for entry in entries], float).reshape(-1, 4) * scale
        boxes[:, 2:] += boxes[:, :2]
        masks = None
        if self.kind == 'segm':
            masks = np.zeros((len(entries), *size), bool)
            for target, entry in zip(masks, entries):
                whole = mask.decode(entry['segmentation'])
                target[:] = cv2.resize(whole, size[::-1], interpolation=cv2.INTER_NEAREST)
        scores = [entry['score'] for entry in entries if 'score' in entry]
        return Objects(
            boxes,
            np.array([labels[entry['category_id']] for entry in entries], int),
            np.array(scores) if scores else None,
            masks,
        )


def _caption(image: ImageErrors) -> str:
    return (
        f'F1 {image.f1:.3f}: {image.right} right, {image.confused} as another class, '
        f'{image.missed} missed, {image.false} false'
    )
