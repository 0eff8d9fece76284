"""Average precision in training and testing, where there is nothing to be precise about."""

import pytest
import torch
from mmdet.datasets import CocoDataset

from mmattn.evaluation import coco_metric
from mmattn.evaluation.coco_metric import CocoMetric


@pytest.mark.parametrize('kinds', [['bbox'], ['bbox', 'segm']])
def test_a_network_that_finds_nothing_has_ap_0_and_it_is_said(kinds, street, monkeypatch):
    said = []
    monkeypatch.setattr(coco_metric, 'warn', said.append)
    file = str(street / 'annotations' / 'instancesonly_filtered_gtFine_val.json')
    data = CocoDataset(ann_file=file, data_prefix=dict(img=''), lazy_init=True)
    metric = CocoMetric(ann_file=file, metric=kinds)
    metric.dataset_meta = data.metainfo
    none = dict(
        bboxes=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.long),
        masks=torch.zeros(0, 64, 128, dtype=torch.bool),
    )
    for ident in 1, 2:
        sample = dict(img_id=ident, ori_shape=(64, 128), pred_instances=none)
        metric.process({}, [sample])
    found = metric.evaluate(2)
    assert {k: found[f'coco/{k}_mAP'] for k in kinds} == dict.fromkeys(kinds, 0.0)
    assert said == [f'no detection in 2 images: every {kind} figure is 0' for kind in kinds]


def test_a_part_of_which_no_image_came_has_figures_too(street):
    """As in a rehearsal of one image, where each data set has a metric of its own."""
    metric = CocoMetric(str(street / 'annotations' / 'instancesonly_filtered_gtFine_val.json'))
    found = metric.compute_metrics([])
    assert set(found.values()) == {0.0} and 'bbox_mAP' in found
