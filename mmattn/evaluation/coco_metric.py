"""COCO's average precision during training and testing."""

import logging

from mmdet.evaluation import CocoMetric as DetCocoMetric
from mmengine.logging import print_log

from mmattn.registry import METRICS

_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


@METRICS.register_module()
class CocoMetric(DetCocoMetric):
    """MMDetection's `CocoMetric`, where a network that finds nothing has AP 0 instead of none.

    Arguments are those of `mmdet.CocoMetric`. Figures are fractions, -1 where there is nothing to
    score, such as large objects in a set without any. Annotation ids may count from 0.

    Attributes:
        ann_file: what it was made with.
    """

    def __init__(self, ann_file: str | None = None, *args, **kwargs) -> None:
        super().__init__(ann_file, *args, **kwargs)
        self.ann_file = ann_file
        if self._coco_api is not None and renumber(self._coco_api):
            text = f'{ann_file}: annotation ids count from 0. They are scored as if from 1.'
            print_log(text, logger='current')

    def compute_metrics(self, results: list) -> dict[str, float]:
        found = super().compute_metrics(results) if results else {}  # none of a part not reached
        for metric in () if self.format_only else self.metrics:
            if metric in ('bbox', 'segm') and f'{metric}_mAP' not in found:
                text = f'no detection in {len(results)} images: every {metric} figure is 0'
                if results:
                    print_log(text, logger='current', level=logging.WARNING)
                found |= {f'{metric}_{item}': 0.0 for item in self.metric_items or _ITEMS}
        return {name: float(value) for name, value in found.items()}


def renumber(coco) -> bool:
    """Count the annotation ids of pycocotools' index from 1 if one is 0, which scores as a miss."""
    entries = coco.dataset.get('annotations', [])
    if not any(entry['id'] == 0 for entry in entries):
        return False
    coco.dataset['annotations'] = [dict(e, id=i) for i, e in enumerate(entries, 1)]
    coco.createIndex()
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs  # mmdet's names for them
    return True
