"""GCNet on EfficientNet-Lite0, CamVid: global context (ratio 1/4) in the decode head, else fcn_lite0_camvid.py.

600 iterations of batch 8, crop 240x320, from ImageNet weights. The last checkpoint is the result:
CamVid's val split is one clip next to the training frames, so nothing is chosen by it.
"""
_base_ = [
    '_base_/models/segmentor_r18.py',
    '_base_/backbones/lite0_seg.py',
    '_base_/datasets/camvid.py',
    '_base_/schedules/adamw_600.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size, mean=_base_.mean, std=_base_.std),
    backbone=_base_.backbone,
    decode_head=dict(in_channels=320, type='mmattn.GCHead', ratio=1 / 4, num_classes=11),
    auxiliary_head=dict(in_channels=112, num_classes=11))
