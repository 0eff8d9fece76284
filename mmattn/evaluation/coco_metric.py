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
    score, such as large objects in a set without any. Annotation ids may count from 0 or be texts.

    Attributes:
        ann_file: what it was made with.
    """

    def __init__(self, ann_file: str | None = None, *args, **kwargs) -> None:
        super().__init__(ann_file, *args, **kwargs)
        self.ann_file = ann_file
        why = '' if self._coco_api is None else renumber(self._coco_api)
        if why:
            text = f'{ann_file}: annotation ids {why}. They are scored as if from 1.'
            print_log(text, logger='current')

    def results2json(self, results, outfile_prefix: str) -> dict:
        files = super().results2json(results, outfile_prefix)
        # results are written by the order of the classes, but pycocotools' tables go by ids
        self.cat_ids = sorted(self.cat_ids)
        return files

    def compute_metrics(self, results: list) -> dict[str, float]:
        self.cat_ids = None  # in the order of the classes, see above
        found = super().compute_metrics(results) if results else {}  # none of a part not reached
        for metric in () if self.format_only else self.metrics:
            if metric in ('bbox', 'segm') and f'{metric}_mAP' not in found:
                text = f'no detection in {len(results)} images: every {metric} figure is 0'
                if results:
                    print_log(text, logger='current', level=logging.WARNING)
                found |= {f'{metric}_{item}': 0.0 for item in self.metric_items or _ITEMS}
        return {name: float(value) for name, value in found.items()}


def renumber(coco) -> str:
    """Count the annotation ids of pycocotools' index from 1 if one is 0, which scores as a miss, or
    a text, on which it fails; returns what they are if so.
    """
    entries = coco.dataset.get('annotations', [])
    if any(isinstance(entry['id'], str) for entry in entries):
        why = 'are texts'
    elif any(entry['id'] == 0 for entry in entries):
        why = 'count from 0'
    else:
        return ''
    coco.dataset['annotations'] = [dict(e, id=i) for i, e in enumerate(entries, 1)]
    coco.createIndex()
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs  # mmdet's names for them
    return why
