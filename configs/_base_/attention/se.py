"""SE at the end of every residual branch (Squeeze-and-Excitation Networks, CVPR 2018, fig. 3)."""
plugins = [
    dict(cfg=dict(type='mmattn.SE', reduction=16, init='identity'), position='before_add', learn=True),
]
