"""A tiny detection set whose predictions are known: sets, a config, and a network that answers by heart."""

import hashlib
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.models.detectors import SingleStageDetector
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.conftest import ROOT

CLASSES = ('red', 'green')
_STEPS = """[
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape')),
]"""
_CONFIG = """
_base_ = {base!r}
_common = dict(
    type='CocoDataset', data_root={root!r}, data_prefix=dict(img='images/'), pipeline={steps},
    metainfo=dict(classes={classes!r}, palette=[(220, 20, 60), (0, 130, 200)]))
model = dict(bbox_head=dict(num_classes=2), backbone=dict(base_channels=8), neck=dict(
    in_channels=[8, 16, 32, 64], out_channels=32))
model['bbox_head'].update(in_channels=32, feat_channels=32, stacked_convs=1)
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    _delete_=True, ann_file='train.json', **_common))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    _delete_=True, ann_file='val.json', test_mode=True, **_common))
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    _delete_=True, ann_file='val.json', test_mode=True, **_common))
train_cfg = dict(max_iters=2, val_interval=2)
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=False)]
test_evaluator = val_evaluator = dict(type='CocoMetric', metric='bbox', classwise=False)
"""


def squares(root, split, count, first=1, category=1, names=None) -> dict:
    """Write `count` images and `<split>.json`, whose ids count from `first`; returns its content."""
    rng, root = np.random.default_rng(len(split) + count), Path(root)
    categories = [dict(id=category + i, name=name) for i, name in enumerate(CLASSES)]
    data = dict(images=[], annotations=[], categories=categories)
    for i in range(count):
        name = names(i) if names else f'{split}_{i}.png'
        path = root / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((48, 64, 3), 10 * i + 5, np.uint8))
        data['images'].append(dict(id=first + i, file_name=name, width=64, height=48))
        for k in range(3):
            x, y = 20 * k + int(rng.integers(4)), int(rng.integers(20))
            w, h = (int(v) for v in rng.integers(9, 16, 2))
            ident = first + len(data['annotations'])
            label = int(rng.integers(2))
            data['annotations'].append(
                dict(
                    id=ident, image_id=first + i, category_id=category + label, iscrowd=0,
                    bbox=[x, y, w, h], area=w * h, segmentation=[],
                )
            )  # fmt: skip
    save(root / f'{split}.json', data)
    return data


def save(path, data) -> None:
    Path(path).write_text(json.dumps(data))


def config(path, root, extra='', classes=CLASSES) -> Path:
    base = str(ROOT / 'configs' / 'retinanet_r18_bccd.py')
    text = _CONFIG.format(base=base, root=str(root), steps=_STEPS, classes=classes)
    Path(path).write_text(text + extra)
    return Path(path)


def by_heart(*sets: dict) -> dict[str, list[tuple]]:
    """File name -> (x, y, w, h, class, score) of what is found: most of the truth, shifted, and more."""
    found = {}
    for data in sets:
        first = data['categories'][0]['id']
        for image in data['images']:
            digest = hashlib.sha256(image['file_name'].encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest[:4], 'big'))
            own = [a for a in data['annotations'] if a['image_id'] == image['id']]
            rows = []
            for entry in own:
                x, y, w, h = np.array(entry['bbox']) + rng.normal(0, 0.8, 4)
                label = entry['category_id'] - first
                if rng.random() < 0.9:
                    rows.append((x, y, w, h, label if rng.random() < 0.9 else 1 - label))
            rows.append((*rng.uniform(0, 20, 2), *rng.uniform(5, 12, 2), int(rng.integers(2))))
            rows = [(*np.float32(row[:4]).tolist(), row[4], float(rng.random())) for row in rows]
            found[image['file_name']] = sorted(rows, key=lambda row: -row[-1])
    return found


def recite(monkeypatch, found: dict[str, list[tuple]], shown: list | None = None) -> None:
    """Have the network predict what it knows of the image, whatever it sees; `shown` keeps paths."""

    def predict(self, inputs, samples, rescale=True):
        for sample in samples:
            name = next(k for k in found if sample.img_path.endswith('/' + k))
            if shown is not None:
                shown.append(sample.img_path)
            rows = torch.tensor(found[name], dtype=torch.float64).reshape(-1, 6)
            x, y, w, h = rows[:, :4].T
            sample.pred_instances = InstanceData(
                bboxes=torch.stack([x, y, x + w, y + h], 1),
                labels=rows[:, 4].long(),
                scores=rows[:, 5],
            )
        return samples

    monkeypatch.setattr(SingleStageDetector, 'predict', predict)


def average_precision(truth: dict, found: dict[str, list[tuple]], images=None) -> float:
    """What pycocotools makes of it: of all images, or of those whose ids are given."""
    ids = {c['name']: c['id'] for c in truth['categories']}
    results = [
        dict(image_id=i['id'], category_id=ids[CLASSES[label]], bbox=[x, y, w, h], score=score)
        for i in truth['images']
        if images is None or i['id'] in images
        for x, y, w, h, label, score in found[i['file_name']]
    ]
    with redirect_stdout(StringIO()):
        index = COCO()
        index.dataset = json.loads(json.dumps(truth))
        index.createIndex()
        run = COCOeval(index, index.loadRes(results), 'bbox')
        if images is not None:
            run.params.imgIds = sorted(images)
        run.params.maxDets = [100, 300, 1000]
        run.evaluate()
        run.accumulate()
    precision = run.eval['precision'][..., 0, -1]
    return float(precision[precision > -1].mean())
