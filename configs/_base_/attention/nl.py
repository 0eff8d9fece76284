"""Non-local, one block, before the last residual block of stage 3 (Non-local Neural Networks, CVPR 2018, section 5.2)."""
plugins = [
    dict(
        cfg=dict(type='mmattn.NonLocal2d', reduction=2, mode='embedded_gaussian', init='identity'),
        position='after_add',
        stages=(False, False, True, False),
        blocks=(-2, ),
        learn=True),
]
