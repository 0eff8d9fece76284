"""Mask R-CNN on EfficientNet-Lite0, DSB 2018: masks of nuclei, from ImageNet weights.

300 iterations of batch 4. The last checkpoint is the result, scored on the val split.
"""
_base_ = [
    '_base_/models/mask_rcnn_r18.py',
    '_base_/backbones/lite0_det.py',
    '_base_/datasets/dsb2018.py',
    '_base_/schedules/adamw_300.py',
    '_base_/runtime_det.py',
]
model = dict(
    data_preprocessor=dict(mean=_base_.mean, std=_base_.std),
    backbone=_base_.backbone,
    neck=dict(in_channels=[24, 40, 112, 320]),
    roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)))
