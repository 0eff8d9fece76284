"""Selective kernels instead of the 3x3 convolution of every residual block (SKNet, CVPR 2019, table 1).

With init='identity' a block starts as the convolution that was there, with its groups; the authors' network,
ResNeXt-like with 32 groups and no norm after the unit, is the backbone mmattn.SKNet.
"""
plugins = [
    dict(cfg=dict(type='mmattn.SKConv2d', init='identity'), replace='backbone.layer*.*.conv2', learn=True),
]
