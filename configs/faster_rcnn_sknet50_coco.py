"""Faster R-CNN on SKNet-50, COCO.

90,000 iterations of batch 16 (8 GPUs x 2), SGD 0.02. The backbone starts from random weights: SKNet has no published ones
for PyTorch, so name yours with model.backbone.init_cfg.
"""
_base_ = [
    '_base_/models/faster_rcnn_r50.py',
    '_base_/datasets/coco.py',
    '_base_/schedules/sgd_90k.py',
    '_base_/runtime_det.py',
]
model = dict(backbone=dict(type='mmattn.SKNet', depth=50, frozen_stages=-1, norm_eval=False, init_cfg=None))
