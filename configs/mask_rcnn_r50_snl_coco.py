"""Mask R-CNN on ResNet-50, COCO: one simplified non-local block.

90,000 iterations of batch 16 (8 GPUs x 2), SGD 0.02. The block has the place and the arguments of its authors
and starts as the identity, so that the ImageNet weights around it count from the first step.
"""
_base_ = [
    '_base_/models/mask_rcnn_r50.py',
    '_base_/datasets/coco_masks.py',
    '_base_/attention/snl.py',
    '_base_/schedules/sgd_90k.py',
    '_base_/runtime_det.py',
]
model = dict(plugins=_base_.plugins)
