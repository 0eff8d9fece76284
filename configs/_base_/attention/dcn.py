"""Deformable convolution instead of the 3x3 of stages 2 to 4 (Deformable Convolutional Networks, ICCV 2017)."""
plugins = [
    dict(cfg=dict(type='DCN', deform_groups=1), replace='backbone.layer[2-4].*.conv2'),
]
