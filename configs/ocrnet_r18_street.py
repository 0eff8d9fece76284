"""OCRNet on ResNet-18, street: object-contextual representations in the decode head, else fcn_r18_street.py.

440 iterations of batch 4, crop 128x256, from random weights.

The head gathers a vector for each class from the prediction of a first head, here the auxiliary one, and each position
attends to these: a cascade of two, which --attention and viewing work with, and export does not.
"""
_base_ = [
    '_base_/models/segmentor_r18.py',
    '_base_/datasets/street.py',
    '_base_/schedules/adamw_440.py',
    '_base_/runtime.py',
]
model = dict(
    type='mmattn.CascadeEncoderDecoder',
    num_stages=2,
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=[
        _base_.model.auxiliary_head,
        dict(
            type='OCRHead',
            in_channels=512,
            in_index=3,
            channels=128,
            ocr_channels=64,
            num_classes=19,
            norm_cfg=_base_.norm_cfg,
            loss_decode=_base_.model.decode_head.loss_decode),
    ],
    auxiliary_head=None)
