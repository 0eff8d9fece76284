"""DANet on ResNet-101, Cityscapes: position and channel attention in the decode head, MMSegmentation's recipe.

40,000 iterations of batch 8 (4 GPUs x 2), crop 512x1024, SGD 0.01, poly 0.9; test on whole images.
Source: open-mmlab/mmsegmentation, danet_r101-d8_4xb2-40k_cityscapes-512x1024.
"""
_base_ = [
    '_base_/models/segmentor_r50_mmseg.py',
    '_base_/datasets/cityscapes_512x1024.py',
    '_base_/schedules/sgd_40k.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        depth=101,
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/pretrain/third_party/resnet101_v1c-e67eebb6.pth')),
    decode_head=dict(type='mmattn.DAHead', pam_channels=64))
