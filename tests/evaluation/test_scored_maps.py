"""Scores of single label maps, of which the worst alone are kept."""

import copy

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmattn.evaluation.iou_metric import IoUMetric
from mmattn.evaluation.scored_maps import worst_maps

CLASSES = 4


def sample(path, truth, prediction):
    made = SegDataSample(metainfo=dict(img_path=path))
    made.gt_sem_seg = PixelData(data=torch.as_tensor(truth)[None])
    made.pred_sem_seg = PixelData(data=torch.as_tensor(prediction)[None])
    return made.to_dict()


def images(count=12):
    """Label maps with ignored pixels, some of three classes, and predictions of any quality."""
    rng = np.random.default_rng(5)
    for index in range(count):
        truth, prediction = rng.integers(0, CLASSES - index % 2, (2, 9, 11))
        right = rng.random(truth.shape) < rng.random()
        prediction[right] = truth[right]
        truth[rng.random(truth.shape) < 0.1] = 255
        yield f'{index}.png', truth, prediction


def by_hand(truth, prediction):
    """Mean IoU of the classes that occur, and accuracy, pixel by pixel."""
    pairs = [(t, p) for t, p in zip(truth.ravel(), prediction.ravel()) if t != 255]
    ious = []
    for c in {c for pair in pairs for c in pair}:
        both, any_of = sum(t == p == c for t, p in pairs), sum(c in (t, p) for t, p in pairs)
        ious.append(both / any_of)
    return np.mean(ious), np.mean([t == p for t, p in pairs])


@pytest.fixture
def metric():
    made = IoUMetric()
    made.dataset_meta = dict(classes=tuple('abcd'))
    made.kept_maps = 3
    return made


def kept_of(metric):
    return [image for *_, image in metric.results if image.prediction is not None]


def test_each_image_is_scored_and_the_worst_are_kept_whole(metric):
    expected = {path: by_hand(*pair) for path, *pair in images()}
    for each in images():
        metric.process({}, [sample(*each)])
        assert len(kept_of(metric)) <= metric.kept_maps + 1
    metric.evaluate(12)
    for image in metric.images:
        assert (image.iou, image.accuracy) == pytest.approx(expected[image.path])
    worst = worst_maps(metric.images, 3)
    order = sorted(expected, key=lambda path: expected[path][0])
    assert [image.path for image in worst] == order[:3]
    originals = {path: pair for path, *pair in images()}
    for image in worst:
        prediction, truth = image.maps()
        np.testing.assert_array_equal(truth, originals[image.path][0])
        np.testing.assert_array_equal(prediction, originals[image.path][1])


def test_right_maps_and_maps_without_a_label_are_none_of_the_worst(metric):
    (_, truth, prediction), *_ = images()
    for path, *pair in (
        ('right.png', truth, np.where(truth == 255, 0, truth)),
        ('empty.png', np.full_like(truth, 255), prediction),
        ('wrong.png', truth, prediction),
    ):
        metric.process({}, [sample(path, *pair)])
    metric.evaluate(3)
    assert [image.path for image in worst_maps(metric.images, 9)] == ['wrong.png']
    assert np.isnan(metric.images[1].iou) and metric.images[0].accuracy == 1


def test_an_image_that_pads_a_process_takes_no_place(metric):
    """The last image of a process may repeat the first, and is left out on collecting."""
    given = sorted(images(), key=lambda each: by_hand(*each[1:])[0])
    for each in [*given, given[0]]:
        metric.process({}, [sample(*each)])
    metric.evaluate(12)
    assert [i.path for i in worst_maps(metric.images, 3)] == [path for path, *_ in given[:3]]


def test_a_copy_of_the_metric_begins_anew(metric):
    """As that of a rehearsal does, and the next evaluation of the same metric."""
    rehearsed = copy.copy(metric)
    rehearsed.results = []
    for each in images(5):
        rehearsed.process({}, [sample(*each)])
    for _ in range(2):
        for each in images(4):
            metric.process({}, [sample(*each)])
        assert len(kept_of(metric)) == 4
        metric.evaluate(4)
        assert len(worst_maps(metric.images, 3)) == 3


@pytest.mark.parametrize('count', [255, 256, 300])
def test_many_classes(metric, count):
    metric.dataset_meta = dict(classes=tuple(map(str, range(count))))
    truth = np.arange(count).repeat(2).reshape(2, count)
    prediction = truth[::-1, ::-1].copy()
    truth[0, 0] = 255 if count < 256 else 254
    metric.process({}, [sample('a.png', truth, prediction)])
    (image,) = kept_of(metric)
    shown = image.maps()
    np.testing.assert_array_equal(shown[0], prediction)
    none = 255 if count < 256 else 65535
    np.testing.assert_array_equal(shown[1], np.where(truth >= count, none, truth))
