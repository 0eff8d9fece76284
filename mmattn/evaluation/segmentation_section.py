"""The part of a report that is about label maps: table of classes, confusions and worst images."""

from pathlib import Path

import cv2
import numpy as np

from mmattn.visualization.comparison import compare_labels, save_picture
from mmattn.visualization.report_page import Picture, Pictures, Section, Table, Text

from .image_source import ImageSource
from .iou import areas
from .iou_metric import IoUMetric, mean_present
from .report_parts import confusion_parts, percent, shrunk
from .scored_maps import worst_maps

_COLUMNS = {'IoU': 'IoU', 'Acc': 'accuracy', 'Precision': 'precision', 'Fscore': 'F-score'}


class SegmentationSection:
    """What a report says of the label maps that a metric has scored.

    Args:
        metric: a metric with `kept_maps`, after `evaluate`.
    """

    title = 'label maps'

    def __init__(self, metric: IoUMetric) -> None:
        self.classes = [str(name) for name in metric.dataset_meta['classes']]
        self.matrix, self.images = metric.matrix, metric.images
        figures = metric.figures(metric.matrix, ['mIoU', 'mFscore'])
        self.figures = {key: figures[key] for key in _COLUMNS}

    def write(self, folder: Path, name: str) -> list:
        """Write `pictures/<name>_confusion.png`, and return the parts of the section."""
        matrix, columns = self.matrix[:-1], [*self.classes]
        if matrix[:, -1].any():
            columns.append('no class')
        else:
            matrix = matrix[:, :-1]
        return [
            Text('In percent. A class that is neither in a label map nor predicted is absent.'),
            self._class_table(),
            Text('Pixels of all images by their true class and their predicted one.'),
            *confusion_parts(matrix, self.classes, columns, folder, name),
        ]

    def worst(self, folder: Path, source: ImageSource, prefix: str, count: int) -> Section:
        """Draw the worst images to `pictures/<prefix>_<rank>.jpg`, and return their section."""
        pictures = []
        for rank, image in enumerate(worst_maps(self.images, count), 1):
            file = f'pictures/{prefix}_{rank:02d}.jpg'
            save_picture(folder / file, _draw(source, image.path, *image.maps()))
            caption = (
                f'{rank}. mean IoU {percent(image.iou)} %, accuracy {percent(image.accuracy)} %'
            )
            alt = f'image, truth and prediction for {Path(image.path).name}'
            pictures.append(Picture(file, alt, caption, image.path))
        wrong = sum(image.accuracy < 1 for image in self.images)
        text = (
            f'{wrong} of {len(self.images)} images have a wrong pixel. These have the lowest mean '
            'IoU of the classes that are in the label map or in the prediction of the image.'
        )
        return Section(f'worst images, {self.title}', [Text(text), Pictures(pictures, wide=True)])

    def as_dict(self) -> dict:
        """All numbers, with arrays."""
        return dict(
            classes=self.classes,
            per_class=self.figures,
            confusion=self.matrix,
            images=[
                dict(path=image.path, iou=image.iou, accuracy=image.accuracy)
                for image in self.images
            ],
        )

    def _class_table(self) -> Table:
        _, union, _, label = areas(self.matrix)
        rows, total = [], max(1, label.sum())
        for index, name in enumerate(self.classes):
            missing = '-' if union[index] else 'absent'
            values = (percent(self.figures[key][index], missing) for key in _COLUMNS)
            rows.append([name, percent(label[index] / total), *values])
        means = (percent(mean_present(self.figures[key])) for key in _COLUMNS)
        rows.append(['mean of the classes', percent(label.sum() / total), *means])
        return Table('per class', ['class', 'share of pixels', *_COLUMNS.values()], rows)


def _draw(source: ImageSource, path: str, prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    image, style = source.read(path), source.style(path)
    if image.shape[:2] != truth.shape:
        image = cv2.resize(image, truth.shape[::-1], interpolation=cv2.INTER_AREA)
    image, _ = shrunk(image)
    size = image.shape[1::-1]
    maps = (cv2.resize(x, size, interpolation=cv2.INTER_NEAREST) for x in (truth, prediction))
    return compare_labels(image, *maps, **style)
