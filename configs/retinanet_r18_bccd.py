"""RetinaNet on ResNet-18, BCCD: boxes of blood cells, from random weights.

600 iterations of batch 4. The last checkpoint is the result, scored on the test split.
"""
_base_ = [
    '_base_/models/retinanet_r18.py',
    '_base_/datasets/bccd.py',
    '_base_/schedules/adamw_600.py',
    '_base_/runtime_det.py',
]
model = dict(bbox_head=dict(num_classes=3))
