"""The report of a test: an HTML page with its pictures, and all of its numbers as JSON."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmdet.evaluation import MultiDatasetsEvaluator
from mmengine.evaluator import BaseMetric, Evaluator

from mmattn.errors import UsageError, cannot_write
from mmattn.files import write_text_atomic
from mmattn.text import some
from mmattn.visualization.report_page import Section, Table, write_report_page

from .coco_metric import CocoMetric
from .detection_section import DetectionSection
from .image_source import ImageSource
from .iou_metric import IoUMetric
from .output_names import leaf_datasets
from .scored_images import metric_datasets
from .segmentation_section import SegmentationSection

PAGE = 'index.html'
_NUMBERS = 'report.json'
_WORST = 20  # images that are drawn


def prepare_report(dataset, evaluator: Evaluator, folder: str | Path) -> None:
    """Have the metrics of a test keep what its report shows.

    Args:
        dataset: the built data set, wrappers included.
        evaluator: the built evaluator, whose metrics are changed.
        folder: folder of the report.

    Raises:
        UsageError: no metric of the evaluator can be reported on.
    """
    metrics = []
    if isinstance(evaluator, Evaluator):
        metrics = [metric for metric, _ in metric_datasets(dataset, evaluator, 'test')]
    if not any(map(_kinds, metrics)):
        names = ', '.join(type(metric).__name__ for metric in metrics)
        raise UsageError(
            f'--report {folder}: test_evaluator has {names or "no metric"}, and a report is on '
            'CocoMetric with bbox or segm and on IoUMetric, without format_only. Add one of them, '
            'or leave out --report.'
        )
    for metric in metrics:
        if isinstance(metric, CocoMetric):
            metric.keeps_detections = True
        elif isinstance(metric, IoUMetric):
            metric.kept_maps = _WORST


def write_report(
    dataset,
    evaluator: Evaluator,
    metrics: dict[str, float],
    facts: dict[str, str],
    folder: str | Path,
) -> Path:
    """Write the report of a test that has ended; called by the main process.

    Args:
        dataset, evaluator: as `prepare_report` got them.
        metrics: what the test returned.
        facts: names and texts for the head of the page, one of them `config`.
        folder: folder of the report, see `prepare_report`.

    Returns:
        the page.

    Raises:
        DataError: one of the worst images cannot be read any more.
        WriteError: a file cannot be written.
    """
    folder = Path(folder)
    try:
        (folder / 'pictures').mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, 'Choose another folder with --report.') from error
    facts = facts | _data_facts(dataset)
    values = [[name, metric_text(value)] for name, value in metrics.items()]
    sections = [Section('metric', [Table('as the test prints it', ['name', 'value'], values)])]
    worst, numbers = [], dict(metrics=metrics, facts=facts)
    for name, prefix, parts, source in _parts(dataset, evaluator):
        for kind, part in parts.items():
            title = f'{prefix}: {part.title}' if prefix else part.title
            sections.append(Section(title, part.write(folder, f'{name}{kind}')))
            numbers[f'{prefix}/{kind}' if prefix else kind] = part.as_dict()
        # of boxes and masks, the masks are drawn, with their boxes
        worst.append(part.worst(folder, source, f'{name}worst', _WORST))
    title = f'Test of {facts["config"]}'
    write_report_page(folder / PAGE, title, facts, [*sections, *worst])
    try:
        write_text_atomic(folder / _NUMBERS, json.dumps(_plain(numbers), indent=1) + '\n')
    except OSError as error:
        raise cannot_write(folder / _NUMBERS, error) from error
    return folder / PAGE


def metric_text(value: float) -> str:
    """A metric as the test prints it; nan is that of a class that is absent."""
    return 'absent' if value != value else str(value)


def _kinds(metric: BaseMetric) -> list[str]:
    """What a metric scores that a report can show."""
    if getattr(metric, 'format_only', False):
        return []
    if isinstance(metric, CocoMetric):
        return [kind for kind in ('bbox', 'segm') if kind in metric.metrics]
    return ['labels'] if isinstance(metric, IoUMetric) else []


def _parts(dataset, evaluator: Evaluator) -> Iterator[tuple[str, str, dict, ImageSource]]:
    """Prefix of file names and of titles, parts by kind, and images of each metric."""
    several = isinstance(evaluator, MultiDatasetsEvaluator)
    for index, (metric, scored) in enumerate(metric_datasets(dataset, evaluator, 'test')):
        kinds = _kinds(metric)
        if not kinds:
            continue
        if isinstance(metric, CocoMetric):
            paths = _image_paths(scored)
            parts = {kind: DetectionSection(metric, kind, paths) for kind in kinds}
        else:
            parts = dict(labels=SegmentationSection(metric))
        prefix = evaluator.dataset_prefixes[index] if several else ''
        yield f'{index + 1}_' if several else '', prefix, parts, ImageSource(scored)


def _data_facts(dataset) -> dict[str, str]:
    """Where the images of a data set are from, and their number."""
    leaves = leaf_datasets(dataset)
    names = (getattr(x, 'ann_file', '') or getattr(x, 'data_root', None) or '' for x in leaves)
    return dict(data=some(dict.fromkeys(map(str, names))), images=str(len(dataset)))


def _image_paths(dataset) -> dict:
    """Image id -> path of the image."""
    infos = (
        leaf.get_data_info(index) for leaf in leaf_datasets(dataset) for index in range(len(leaf))
    )
    return {info['img_id']: str(info['img_path']) for info in infos}


def _plain(value):
    """Nested numbers without arrays and nan, as JSON takes them."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value
