"""Modulated deformable convolution instead of the 3x3 of stages 2 to 4 (Deformable ConvNets v2, CVPR 2019)."""
plugins = [
    dict(cfg=dict(type='DCNv2', deform_groups=1), replace='backbone.layer[2-4].*.conv2'),
]
