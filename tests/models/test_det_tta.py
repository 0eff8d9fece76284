"""Detectors over an image and its mirror: what is merged, and that one view alone changes nothing."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmdet.models.detectors import SingleStageDetector
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmattn.config.load import load_config
from mmattn.engine.test import test as evaluate
from mmattn.models.det_tta import det_tta_model, det_tta_pipeline
from tests.conftest import ROOT
from tests.squares import config, squares

PLAIN = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(192, 144), keep_ratio=True),
    dict(type='Pad', size_divisor=32),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
FLIPPED = [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)]


@pytest.fixture(scope='module')
def own(tmp_path_factory):
    """A config of RetinaNet and two images of noise."""
    root = tmp_path_factory.mktemp('squares')
    for split, count in ('train', 2), ('val', 2):
        squares(root, split, count)
    rng = np.random.default_rng(0)
    for path in (root / 'images').glob('val_*'):
        cv2.imwrite(str(path), rng.integers(0, 255, (48, 64, 3), np.uint8))
    return config(root / 'own.py', root, f'\ntest_dataloader["dataset"]["pipeline"] = {PLAIN!r}\n')


def results(path, folder, **options) -> list:
    """The boxes that a test writes."""
    evaluate(path, None, work_dir=folder, out=folder / 'out', **options)
    found = json.loads((folder / 'out' / 'results.bbox.json').read_text())
    return sorted((r['image_id'], r['category_id'], r['score'], r['bbox']) for r in found)


def test_one_view_alone_gives_the_plain_results(own, tmp_path):
    options = {'model.test_cfg.score_thr': 0.0}  # what a network of random weights finds counts
    plain = results(own, tmp_path / 'plain', cfg_options=options)
    assert len(plain) > 50
    pipeline = det_tta_pipeline(PLAIN)
    del pipeline[-1]['transforms'][0][1]
    given = options | {'tta_pipeline': pipeline}
    assert results(own, tmp_path / 'one', cfg_options=given, tta=True) == plain
    assert results(own, tmp_path / 'two', cfg_options=options, tta=True) != plain


def test_boxes_of_the_mirror_are_mirrored_back_and_merged(own, tmp_path, monkeypatch):
    """By a network that sees one object in both views, and another in the mirror alone."""

    def predict(self, inputs, samples, rescale=True):
        for sample in samples:
            boxes = [[50, 4, 60, 14], [2, 30, 12, 40]] if sample.flip else [[4, 4, 14, 14]]
            scores = [0.6, 0.5] if sample.flip else [0.9]
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor(boxes, dtype=torch.float32),
                scores=torch.tensor(scores),
                labels=torch.zeros(len(boxes), dtype=torch.long),
            )
        return samples

    monkeypatch.setattr(SingleStageDetector, 'predict', predict)
    shown = tmp_path / 'shown'
    found = results(own, tmp_path, tta=True, rehearsal=False, show_dir=shown)
    assert [(image, score, box) for image, _, score, box in found] == [
        (image, pytest.approx(score), box)
        for image in (1, 2)
        for score, box in ((0.5, [52, 30, 10, 10]), (0.9, [4, 4, 10, 10]))
    ]
    assert len(list(shown.glob('*.png'))) == 2


def test_the_mirror_comes_before_padding_and_annotations():
    made = det_tta_pipeline(PLAIN)
    pack = dict(PLAIN[-1], meta_keys=(*PLAIN[-1]['meta_keys'], 'flip', 'flip_direction'))
    assert made == [
        *PLAIN[:2],
        dict(type='TestTimeAug', transforms=[FLIPPED, [PLAIN[2]], [PLAIN[3]], [pack]]),
    ]
    assert 'flip' not in PLAIN[-1]['meta_keys']
    for steps in PLAIN[:-1], [PLAIN[0], FLIPPED[0], PLAIN[-1]], []:
        with pytest.raises(ValueError, match='last step has to be PackDetInputs'):
            det_tta_pipeline(steps)


@pytest.mark.parametrize(
    'name, threshold, count',
    [('retinanet_r18_bccd', 0.5, 100), ('faster_rcnn_r18_bccd', 0.5, 100)],
)
def test_the_threshold_is_the_detectors(name, threshold, count):
    model = load_config(ROOT / 'configs' / f'{name}.py').model
    wanted = dict(nms=dict(type='nms', iou_threshold=threshold), max_per_img=count)
    assert det_tta_model(model) == dict(type='DetTTAModel', tta_cfg=wanted)
    part = model.test_cfg.get('rcnn', model.test_cfg)
    part.nms.iou_threshold, part.max_per_img = 0.7, 3
    wanted = dict(nms=dict(type='nms', iou_threshold=0.7), max_per_img=3)
    assert det_tta_model(model)['tta_cfg'] == wanted
    assert det_tta_model(Config(dict(type='DETR')))['tta_cfg']['nms']['iou_threshold'] == 0.5
