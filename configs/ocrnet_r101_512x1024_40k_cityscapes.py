"""OCRNet on ResNet-101, Cityscapes: object-contextual representations in the decode head, MMSegmentation's recipe.

The head gathers a vector for each class from the prediction of a first head, here the auxiliary one, and each position
attends to these: a cascade of two, which --attention and viewing work with, and export does not.

40,000 iterations of batch 8 (4 GPUs x 2), crop 512x1024, SGD 0.01, poly 0.9; test on whole images.
Source: open-mmlab/mmsegmentation, ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024.
"""
_base_ = [
    '_base_/models/segmentor_r50_mmseg.py',
    '_base_/datasets/cityscapes_512x1024.py',
    '_base_/schedules/sgd_40k.py',
    '_base_/runtime.py',
]
model = dict(
    type='mmattn.CascadeEncoderDecoder',
    num_stages=2,
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        depth=101,
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/pretrain/third_party/resnet101_v1c-e67eebb6.pth')),
    decode_head=[
        _base_.model.auxiliary_head,
        dict(
            type='OCRHead',
            in_channels=2048,
            in_index=3,
            channels=512,
            ocr_channels=256,
            num_classes=19,
            norm_cfg=_base_.norm_cfg,
            loss_decode=_base_.model.decode_head.loss_decode),
    ],
    auxiliary_head=None)
