"""Mask R-CNN on ResNet-50, Cityscapes: boxes and masks of its eight classes with instances.

24,000 iterations of batch 8 (8 GPUs x 1), SGD 0.01. Its authors start from a network trained on COCO:
--init-from FILE takes all of one that fits, which is all but the layers that name classes.
Source: Mask R-CNN, ICCV 2017, arXiv 1703.06870, appendix A; open-mmlab/mmdetection, configs/cityscapes.
"""
_base_ = [
    '_base_/models/mask_rcnn_r50.py',
    '_base_/datasets/cityscapes_instances.py',
    '_base_/schedules/sgd_24k.py',
    '_base_/runtime_det.py',
]
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=8), mask_head=dict(num_classes=8)))
