"""CCNet on ResNet-50, Cityscapes: criss-cross attention (R = 2) in the decode head, MMSegmentation's recipe.

80,000 iterations of batch 8 (4 GPUs x 2), crop 769x769, SGD 0.01, poly 0.9; test by sliding window.
Source: open-mmlab/mmsegmentation, ccnet_r50-d8_4xb2-80k_cityscapes-769x769.
"""
_base_ = [
    '_base_/models/segmentor_r50_mmseg.py',
    '_base_/datasets/cityscapes_769x769.py',
    '_base_/schedules/sgd_80k.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(type='mmattn.CCHead', recurrence=2, align_corners=True),
    auxiliary_head=dict(align_corners=True),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(513, 513)))
