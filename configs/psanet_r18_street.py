"""PSANet on ResNet-18, street: point-wise spatial attention in the decode head, else fcn_r18_street.py.

440 iterations of batch 4, crop 128x256, from random weights.

Each position has a weight for every offset within mask_size, by a compiled operator of mmcv, so it is not exported.
A map of H x W, after shrink_factor, needs (2H - 1, 2W - 1) for all pairs: here that of the whole images, 8 x 16.
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
        type='PSAHead',
        mask_size=(15, 31),
        shrink_factor=2))
