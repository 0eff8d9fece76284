"""Mask R-CNN on ResNet-50, COCO.

90,000 iterations of batch 16 (8 GPUs x 2), SGD 0.02.
"""
_base_ = [
    '_base_/models/mask_rcnn_r50.py',
    '_base_/datasets/coco_masks.py',
    '_base_/schedules/sgd_90k.py',
    '_base_/runtime_det.py',
]
