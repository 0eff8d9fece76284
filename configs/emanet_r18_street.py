"""EMANet on ResNet-18, street: expectation-maximization attention in the decode head, else fcn_r18_street.py.

440 iterations of batch 4, crop 128x256, from random weights.

The bases are no parameters but a buffer, a moving average over batches and ranks. The EM steps pass no gradient on: the
head learns by its skip connection and by the convolutions after them, and `ema_mid_conv` stays as it was drawn.
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
        type='EMAHead',
        ema_channels=128,
        num_bases=64,
        num_stages=3))
