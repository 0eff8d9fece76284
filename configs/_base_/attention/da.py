"""Position and channel attention (DANet, CVPR 2019) on the last feature map, which the authors' decode head attends to."""
plugins = [
    dict(
        cfg=dict(type='mmattn.DualAttention', init='identity'),
        position='after_stage',
        stages=(False, False, False, True),
        learn=True),
]
