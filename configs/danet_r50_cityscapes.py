"""DANet on ResNet-50, Cityscapes: position and channel attention in the decode head, the recipe of ccnet_r50_cityscapes.py.

60,000 iterations of batch 8 (4 GPUs x 2), crop 769x769, SGD 0.01, poly 0.9; test by sliding window.
"""
_base_ = [
    '_base_/models/segmentor_r50.py',
    '_base_/datasets/cityscapes_ccnet.py',
    '_base_/schedules/sgd_60k.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(type='mmattn.DAHead', pam_channels=64, align_corners=True),
    auxiliary_head=dict(align_corners=True),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(513, 513)))
