"""Intersection over union during training and testing, of every class and on average."""

import heapq
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import print_log
from mmseg.evaluation import IoUMetric as SegIoUMetric
from PIL import Image
from prettytable import PrettyTable

from mmattn.errors import DataError, UsageError, cannot_write
from mmattn.log import warn
from mmattn.registry import METRICS

from .cityscapes import label_ids
from .iou import areas, confusion
from .scored_maps import ScoredMap, score_map

_CHOICES = ('mIoU', 'mDice', 'mFscore')


@METRICS.register_module()
class IoUMetric(SegIoUMetric):
    """MMSegmentation's `IoUMetric` that also returns `IoU.<class>`; all figures are in percent.

    Arguments are those of `mmseg.IoUMetric`. The F-score of a class that is never predicted is 0,
    not nan, so that mFscore is mDice for beta=1. Label maps are written to `output_dir`: of the 19
    classes of Cityscapes as label ids, for its evaluator; of others as class indices from 0, as
    tools/infer.py writes them. With `format_only` they are in the form of a benchmark's server,
    which counts from 1 where the data set has `reduce_zero_label` (ADE20K).

    Attributes:
        output_names: image -> relative path of its label map; the default is `<image name>.png`.
        results: per image, the nonzero cells of its confusion matrix, their pixels, and its score
            if some are kept.
        matrix: confusion matrix of all images after `evaluate`, on the main process; see
            `iou.confusion`.
        kept_maps: number of images, those with the lowest IoU, whose label maps are kept for a
            report; 0 scores no image on its own.
        images: score of each image after `evaluate`, on the main process, if `kept_maps` is set.

    Raises:
        UsageError: an unknown metric; `format_only` without `output_dir`.
        DataError: while counting: an image without labels, a label that is neither a class nor
            ignored, a label map of another size than the prediction, two images of the same name.
    """

    matrix: np.ndarray | None = None
    kept_maps = 0

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        metrics = [self.metrics] if isinstance(self.metrics, str) else self.metrics
        if not set(metrics) <= set(_CHOICES):
            raise UsageError(f'IoUMetric: iou_metrics={metrics}, allowed: {", ".join(_CHOICES)}.')
        if self.format_only and not self.output_dir:
            raise UsageError('IoUMetric: format_only needs a folder. Set output_dir, or use --out.')
        self.output_names: dict[str, Path] = {}
        self._written: dict[Path, str] = {}  # image by relative path
        self._reduced = False
        self.images: list[ScoredMap] = []
        self._worst: list[tuple[float, int]] = []  # heap of -IoU and -index of the kept ones

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            prediction = sample['pred_sem_seg']['data'].squeeze()
            if prediction.is_floating_point():  # a head with a single output channel
                prediction = prediction.long()
            if not self.format_only:
                matrix = self._count(sample, prediction)
                cells = np.flatnonzero(matrix)
                image = self._keep(sample, prediction, matrix) if self.kept_maps else None
                self.results.append((cells.astype(np.int32), matrix.ravel()[cells], image))
            if self.output_dir:
                self._write(sample, prediction)

    def compute_metrics(self, results: list) -> dict[str, float]:
        if self.output_dir:
            kind = 'Cityscapes label ids' if self._is_cityscapes() else 'class indices from 0'
            if self._reduced and self.format_only and not self._is_cityscapes():
                kind = 'class indices + 1, as the benchmark counts (format_only)'
            print_log(f'label maps are in {self.output_dir}, as {kind}', logger='current')
        if self.format_only:
            return {}
        side = len(self.dataset_meta['classes']) + 1
        self.matrix = np.zeros((side, side), np.int64)
        for cells, counts, _ in results:
            self.matrix.ravel()[cells] += counts
        # mmengine makes plain tuples of them
        self.images = [ScoredMap(*image) for *_, image in results if image is not None]
        figures = self.figures(self.matrix)
        ious = figures['IoU'] if 'IoU' in figures else self.figures(self.matrix, 'mIoU')['IoU']
        metrics = {'aAcc': float(figures.pop('aAcc'))}
        metrics |= {f'm{name}': mean_present(values) for name, values in figures.items()}
        metrics |= {f'IoU.{name}': v for name, v in zip(self.dataset_meta['classes'], ious)}
        self._log_figures(figures, len(results))
        return {name: round(100 * float(value), 2) for name, value in metrics.items()}

    def figures(
        self, matrix: np.ndarray, iou_metrics: str | list[str] | None = None
    ) -> dict[str, np.ndarray]:
        """mmseg's figures from a confusion matrix, as fractions in float64.

        `aAcc` is one number, the others are (num_classes,), nan where mmseg divides 0 by 0.
        """
        totals = [torch.from_numpy(area).double() for area in areas(matrix)]
        figures = self.total_area_to_metrics(
            *totals, iou_metrics or self.metrics, self.nan_to_num, self.beta
        )
        if 'Fscore' in figures:  # mmseg's is nan where a class is never predicted
            intersection, _, prediction, label = totals
            score = (1 + self.beta**2) * intersection / (self.beta**2 * label + prediction)
            if self.nan_to_num is not None:
                score = score.nan_to_num(self.nan_to_num)
            figures['Fscore'] = score.numpy()
        return figures

    def _count(self, sample: dict, prediction: torch.Tensor) -> np.ndarray:
        """The confusion matrix of one image."""
        image = sample.get('img_path', 'an image')
        if 'gt_sem_seg' not in sample:
            raise DataError(
                f'{image} has no label map to compare with. To write predictions only, set '
                'test_evaluator.format_only=True and use --out.'
            )
        label = sample['gt_sem_seg']['data'].squeeze()
        where = sample.get('seg_map_path') or f'the label map of {image}'
        count = len(self.dataset_meta['classes'])
        if label.shape != prediction.shape:
            sizes = [f'{tuple(x.shape)}' for x in (label, prediction)]
            raise DataError(
                f'{where} has shape {sizes[0]}, its prediction {sizes[1]}. '
                'Load annotations after the last Resize of the pipeline, or replace the file.'
            )
        matrix = confusion(prediction, label, count, self.ignore_index)
        if matrix[-1].any():
            wrong = label[(label != self.ignore_index) & ((label < 0) | (label >= count))]
            raise DataError(
                f'label {int(wrong[0])} in {where} is outside 0..{count - 1} and not '
                f'{self.ignore_index}, which is ignored. The labels must be train ids: '
                'see tools/prepare_data.py.'
            )
        return matrix

    def _keep(self, sample: dict, prediction: torch.Tensor, matrix: np.ndarray) -> ScoredMap:
        """The score of an image, with its label maps if it is among the worst of this process."""
        if not self.results:  # of this evaluation: a copy of the metric begins anew, too
            self._worst = []
        image = score_map(sample, matrix)
        # One more than asked for: the last image of a process may repeat the first.
        full = len(self._worst) > self.kept_maps
        if not image.iou < 1 or (full and image.iou >= -self._worst[0][0]):
            return image
        heapq.heappush(self._worst, (-image.iou, -len(self.results)))
        if full:
            index = -heapq.heappop(self._worst)[1]
            cells, counts, other = self.results[index]
            self.results[index] = cells, counts, other._replace(prediction=None, truth=None)
        return image.with_maps(sample, prediction, len(self.dataset_meta['classes']))

    def _write(self, sample: dict, prediction: torch.Tensor) -> None:
        image = str(sample['img_path'])
        name = self.output_names.get(image) or Path(f'{Path(image).stem}.png')
        other = self._written.setdefault(name, image)
        if other != image:
            raise DataError(
                f'{other} and {image} would both be written to {name}. Rename one of them.'
            )
        values = prediction.cpu().numpy()
        if self._is_cityscapes():
            values = label_ids()[values]
        elif sample.get('reduce_zero_label'):
            self._reduced = True
            values = values.astype(np.int64) + self.format_only
        few = len(self.dataset_meta['classes']) < 256
        path = Path(self.output_dir, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8 if few else np.uint16)).save(path)
        except OSError as error:
            raise cannot_write(path, error, 'Choose another folder with --out.') from error

    def _is_cityscapes(self) -> bool:
        from mmseg.datasets import CityscapesDataset

        return tuple(self.dataset_meta['classes']) == CityscapesDataset.METAINFO['classes']

    def _log_figures(self, figures: dict[str, np.ndarray], images: int) -> None:
        """Log a table of all classes, and the classes that the means leave out."""
        names = self.dataset_meta['classes']
        _, union, _, label = areas(self.matrix)
        table = PrettyTable(['Class', *figures])
        for index, name in enumerate(names):
            missing = '-' if union[index] else 'absent'
            values = [array[index] for array in figures.values()]
            cells = [missing if np.isnan(value) else f'{100 * value:.2f}' for value in values]
            table.add_row([name, *cells])
        print_log(f'per class results:\n{table}', logger='current')
        absent = [name for name, u in zip(names, union) if not u]
        only_predicted = [name for name, u, n in zip(names, union, label) if u and not n]
        messages = []
        if not label.any():
            messages.append(f'no labelled pixel in {images} images: there is nothing to score')
        elif absent:
            effect = f'the means are over the other {len(names) - len(absent)} classes'
            if self.nan_to_num is not None:
                effect = f'counted as {self.nan_to_num} (nan_to_num)'
            messages.append(
                f'absent from labels and predictions of {images} images, {effect}: '
                + ', '.join(absent)
            )
        if only_predicted and label.any():
            messages.append(
                f'predicted, but in no label of {images} images, so the IoU of 0 counts in the '
                'mean: ' + ', '.join(only_predicted)
            )
        if 'Precision' in figures and label.any():
            never = np.isnan(figures['Precision']) & (label > 0)
            never_predicted = [name for name, is_never in zip(names, never) if is_never]
            if never_predicted:
                messages.append(
                    f'never predicted, so mPrecision is without them: {", ".join(never_predicted)}'
                )
        for text in messages:
            warn(text)


def mean_present(values: np.ndarray) -> float:
    """The mean of the values that are not nan; nan if all are."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else float('nan')
