"""CCNet on ResNet-50, Cityscapes: criss-cross attention with R = 2, the recipe of the paper.

60,000 iterations of batch 8 (4 GPUs x 2), crop 769x769, SGD 0.01, poly 0.9; test by sliding window.
Source: CCNet, ICCV 2019, arXiv 1811.11721, section 4.1, and speedinghzl/CCNet.
"""
_base_ = [
    '_base_/models/segmentor_r50.py',
    '_base_/datasets/cityscapes_ccnet.py',
    '_base_/schedules/sgd_60k.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(type='mmattn.CCHead', recurrence=2, align_corners=True),
    auxiliary_head=dict(align_corners=True),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(513, 513)))
