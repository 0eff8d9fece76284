"""CCNet on ResNet-101, ADE20K: criss-cross attention (R = 2) in the decode head, MMSegmentation's recipe.

80,000 iterations of batch 16 (4 GPUs x 4), crop 512x512, SGD 0.01, poly 0.9; test on whole images.
Source: open-mmlab/mmsegmentation, ccnet_r101-d8_4xb4-80k_ade20k-512x512.
"""
_base_ = [
    '_base_/models/segmentor_r50_mmseg.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/sgd_80k.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        depth=101,
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/pretrain/third_party/resnet101_v1c-e67eebb6.pth')),
    decode_head=dict(type='mmattn.CCHead', recurrence=2, num_classes=150),
    auxiliary_head=dict(num_classes=150))
auto_scale_lr = dict(base_batch_size=16)
