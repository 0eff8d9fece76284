"""ResNet-50 and its ImageNet weights, by the type of the backbone: what `_r50` in a config's name puts into its twin."""
arguments = dict(
    ResNet=dict(
        depth=50, init_cfg=dict(checkpoint='https://download.pytorch.org/models/resnet50-0676ba61.pth')),
    ResNetV1c=dict(
        depth=50,
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/pretrain/third_party/resnet50_v1c-2cccc1ad.pth')))
