"""COCO's average precision during training and testing."""

from mmdet.evaluation import CocoMetric as DetCocoMetric
from mmengine.fileio import load
from mmengine.logging import print_log

from mmattn.log import warn
from mmattn.registry import METRICS

_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


@METRICS.register_module()
class CocoMetric(DetCocoMetric):
    """MMDetection's `CocoMetric`, except that a network without detections has AP 0, not no AP.

    Arguments are those of `mmdet.CocoMetric`. Figures are fractions, -1 where there is nothing to
    score, e.g. large objects in a set without any. Annotation ids may count from 0 or be strings.

    Attributes:
        ann_file: the annotation file that it was made with; None for that of the data set.
        keeps_detections: whether to keep what `evaluate` scores, for a report.
        detections: 'bbox', 'segm' -> the scored results in COCO's format, if they are kept; on the
            main process.
        label_ids: category id of each label, after `evaluate` on the main process.
    """

    keeps_detections = False

    def __init__(self, ann_file: str | None = None, *args, **kwargs) -> None:
        super().__init__(ann_file, *args, **kwargs)
        self.ann_file = ann_file
        self.detections: dict[str, list[dict]] = {}
        self.label_ids: list[int] = []
        problem = '' if self._coco_api is None else renumber(self._coco_api)
        if problem:
            text = f'{ann_file}: annotation ids {problem}. They are scored as if from 1.'
            print_log(text, logger='current')

    def results2json(self, results, outfile_prefix: str) -> dict:
        files = super().results2json(results, outfile_prefix)
        self.label_ids = list(self.cat_ids)
        if self.keeps_detections:
            kinds = [kind for kind in ('bbox', 'segm') if kind in files and kind in self.metrics]
            self.detections = {kind: load(files[kind]) for kind in kinds}
        # results are written in the order of the classes, but pycocotools' tables are sorted by id
        self.cat_ids = sorted(self.cat_ids)
        return files

    def compute_metrics(self, results: list) -> dict[str, float]:
        self.cat_ids = None  # in the order of the classes, see above
        figures = super().compute_metrics(results) if results else {}  # no image was reached
        for metric in () if self.format_only else self.metrics:
            if metric in ('bbox', 'segm') and f'{metric}_mAP' not in figures:
                text = f'no detection in {len(results)} images: every {metric} figure is 0'
                if results:
                    warn(text)
                figures |= {f'{metric}_{item}': 0.0 for item in self.metric_items or _ITEMS}
        return {name: float(value) for name, value in figures.items()}


def renumber(coco) -> str:
    """Number annotations from 1 if pycocotools could not score them.

    It takes id 0 for a miss, and fails on strings.

    Args:
        coco: pycocotools' index, which is changed.

    Returns:
        what was wrong with the ids, as the end of a sentence; empty if nothing was.
    """
    entries = coco.dataset.get('annotations', [])
    if any(isinstance(entry['id'], str) for entry in entries):
        problem = 'are strings'
    elif any(entry['id'] == 0 for entry in entries):
        problem = 'count from 0'
    else:
        return ''
    coco.dataset['annotations'] = [dict(e, id=i) for i, e in enumerate(entries, 1)]
    coco.createIndex()
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs  # mmdet's names for them
    return problem
