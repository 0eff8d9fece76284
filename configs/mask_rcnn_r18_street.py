"""Mask R-CNN on ResNet-18, street: boxes and masks of generated scenes, to try things on.

600 iterations of batch 4, from random weights.
"""
_base_ = [
    '_base_/models/mask_rcnn_r18.py',
    '_base_/datasets/street_masks.py',
    '_base_/schedules/adamw_600.py',
    '_base_/runtime_det.py',
]
model = dict(roi_head=dict(bbox_head=dict(num_classes=8), mask_head=dict(num_classes=8)))
