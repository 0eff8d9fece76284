"""Mask R-CNN on ResNet-18, DSB 2018: global context in stages 2 to 4 of mask_rcnn_r18_dsb2018.py.

600 iterations of batch 4. The last checkpoint is the result, scored on the val split.
"""
_base_ = [
    '_base_/models/mask_rcnn_r18.py',
    '_base_/datasets/dsb2018.py',
    '_base_/attention/gc.py',
    '_base_/schedules/adamw_600.py',
    '_base_/runtime_det.py',
]
model = dict(plugins=_base_.plugins, roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)))
