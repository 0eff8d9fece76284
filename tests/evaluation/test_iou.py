import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmattn.evaluation.iou import IoUMetric


def score(pairs, classes):
    metric = IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dict(classes=classes)
    for truth, prediction in pairs:
        sample = SegDataSample(
            gt_sem_seg=PixelData(data=torch.from_numpy(truth)[None]),
            pred_sem_seg=PixelData(data=torch.from_numpy(prediction)[None]),
        )
        metric.process({}, [sample.to_dict()])
    return metric.evaluate(len(pairs))


def test_equals_a_count_by_hand():
    rng = np.random.default_rng(0)
    classes = ('a', 'b', 'c', 'absent')
    pairs = [(rng.integers(0, 3, (5, 7)), rng.integers(0, 3, (5, 7))) for _ in range(3)]
    for truth, _ in pairs:
        truth[0] = 255
    found = score(pairs, classes)
    ious = []
    for c, name in enumerate(classes[:3]):
        both = sum(((t == c) & (p == c)).sum() for t, p in pairs)
        either = sum((((t == c) | (p == c)) & (t != 255)).sum() for t, p in pairs)
        ious.append(100 * both / either)
        assert found[f'IoU.{name}'] == pytest.approx(ious[-1], abs=0.005)
    assert found['mIoU'] == pytest.approx(np.mean(ious), abs=0.005)
    assert np.isnan(found['IoU.absent'])


def test_areas_stay_exact_above_2_to_the_24():
    """20 images of 2^20 pixels, one of each wrong: fp32 sums would lose some of the single pixels."""
    truth = np.zeros((1024, 1024), np.int64)
    prediction = truth.copy()
    prediction[0, 0] = 1
    metric = IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dict(classes=('a', 'b'))
    sample = SegDataSample(
        gt_sem_seg=PixelData(data=torch.from_numpy(truth)[None]),
        pred_sem_seg=PixelData(data=torch.from_numpy(prediction)[None]),
    ).to_dict()
    for _ in range(20):
        metric.process({}, [sample])
    assert sum(r[0][0] for r in metric.results).item() == 20 * (2**20 - 1)
