"""ResNet-101 and its ImageNet weights, by the type of the backbone: what `_r101` in a config's name puts into its twin."""
arguments = dict(
    ResNet=dict(
        depth=101, init_cfg=dict(checkpoint='https://download.pytorch.org/models/resnet101-63fe2227.pth')),
    ResNetV1c=dict(
        depth=101,
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/pretrain/third_party/resnet101_v1c-e67eebb6.pth')))
