"""DNLNet on ResNet-18, street: disentangled non-local attention in the decode head, else fcn_r18_street.py.

440 iterations of batch 4, crop 128x256, from random weights.

The pairwise term compares queries and keys less their means over the positions, at a temperature of 0.05; a unary
term adds one vector to all. `mode='gaussian'` is refused: MMSegmentation's head overwrites its input there.
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
        type='DNLHead',
        reduction=2,
        mode='embedded_gaussian'))
