"""Self-attention with relative positions instead of the 3x3 convolutions of stage 4 (BoTNet, CVPR 2021, table 1).

Random heads in place of pretrained convolutions: stage 4 has to be trained with them.
"""
plugins = [
    dict(cfg=dict(type='mmattn.MHSA', heads=4, init='paper'), replace='backbone.layer4.*.conv2', learn=True),
]
