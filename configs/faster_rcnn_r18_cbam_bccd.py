"""Faster R-CNN on ResNet-18, BCCD: CBAM at the end of every residual branch of faster_rcnn_r18_bccd.py.

600 iterations of batch 4. The last checkpoint is the result, scored on the test split.
"""
_base_ = [
    '_base_/models/faster_rcnn_r18.py',
    '_base_/datasets/bccd.py',
    '_base_/attention/cbam.py',
    '_base_/schedules/adamw_600.py',
    '_base_/runtime_det.py',
]
model = dict(plugins=_base_.plugins, roi_head=dict(bbox_head=dict(num_classes=3)))
