"""CCNet on EfficientNet-Lite0, street: criss-cross attention (R = 2) in the decode head.

440 iterations of batch 4, crop 128x256, from ImageNet weights.
"""
_base_ = [
    '_base_/models/segmentor_lite0.py',
    '_base_/datasets/street.py',
    '_base_/schedules/adamw_440.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(type='mmattn.CCHead', recurrence=2))
