"""CCNet on EfficientNet-Lite0, street: criss-cross attention (R = 2) in the decode head.

440 iterations of batch 4, crop 128x256, from ImageNet weights.
"""
_base_ = [
    '_base_/models/segmentor_r18.py',
    '_base_/backbones/lite0_seg.py',
    '_base_/datasets/street.py',
    '_base_/schedules/adamw_440.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size, mean=_base_.mean, std=_base_.std),
    backbone=_base_.backbone,
    decode_head=dict(in_channels=320, type='mmattn.CCHead', recurrence=2),
    auxiliary_head=dict(in_channels=112))
