"""ISANet on ResNet-18, street: interlaced sparse self-attention in the decode head, else fcn_r18_street.py.

440 iterations of batch 4, crop 128x256, from random weights.

Attention among the positions at the same place of every window of down_factor, then within each window. A map
whose sides are no multiples of down_factor is padded with zeros, which take part in the softmax: images with sides of
multiples of 64 pixels (16 of the stride by 4) need no padding.
It is not exported, as the windows fix the size of an image.
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
        type='ISAHead',
        isa_channels=64,
        down_factor=(4, 4)))
