"""Faster R-CNN on EfficientNet-Lite0, BCCD: boxes of blood cells, from ImageNet weights.

300 iterations of batch 4. The last checkpoint is the result, scored on the test split.
"""
_base_ = [
    '_base_/models/faster_rcnn_r18.py',
    '_base_/backbones/lite0_det.py',
    '_base_/datasets/bccd.py',
    '_base_/schedules/adamw_300.py',
    '_base_/runtime_det.py',
]
model = dict(
    data_preprocessor=dict(mean=_base_.mean, std=_base_.std),
    backbone=_base_.backbone,
    neck=dict(in_channels=[24, 40, 112, 320]),
    roi_head=dict(bbox_head=dict(num_classes=3)))
