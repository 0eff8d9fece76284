"""ANN on ResNet-18, street: asymmetric non-local attention in the decode head, else fcn_r18_street.py.

440 iterations of batch 4, crop 128x256, from random weights.
"""
_base_ = [
    '_base_/models/segmentor_r18.py',
    '_base_/datasets/street.py',
    '_base_/schedules/adamw_440.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(
        type='mmattn.ANNHead',
        in_channels=[256, 512],
        in_index=[2, 3],
        project_channels=64))
