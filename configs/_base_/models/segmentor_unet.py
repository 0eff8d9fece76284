"""U-Net with a quarter of the usual width and four stages: small enough to train on a CPU.

Heads as in MMSegmentation's U-Net configs: one on the finest map, an auxiliary one on the map before it.
Starts from random weights: nothing is downloaded. H and W must be multiples of 8.
"""
_base_ = 'segmentor_r18.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='UNet',
        base_channels=16,
        num_stages=4,
        strides=(1, 1, 1, 1),
        enc_num_convs=(2, 2, 2, 2),
        dec_num_convs=(2, 2, 2),
        downsamples=(True, True, True),
        enc_dilations=(1, 1, 1, 1),
        dec_dilations=(1, 1, 1),
        norm_cfg=_base_.norm_cfg),
    decode_head=dict(in_channels=16, channels=16, num_convs=1, concat_input=False),
    auxiliary_head=dict(in_channels=32, channels=16))
