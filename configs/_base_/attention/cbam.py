"""CBAM at the end of every residual branch (CBAM, ECCV 2018, fig. 3)."""
plugins = [
    dict(cfg=dict(type='mmattn.CBAM', reduction=16, init='identity'), position='before_add', learn=True),
]
