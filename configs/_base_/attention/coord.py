"""Coordinate attention at the end of every residual branch (Coordinate Attention, CVPR 2021; its author's advice for ResNets).

In MobileNetV2 it stands between the depthwise and the last convolution of a block (houqb/CoordAttention, mbv2_ca.py).
"""
plugins = [
    dict(cfg=dict(type='mmattn.CoordinateAttention', init='identity'), position='before_add', learn=True),
]
