"""Global context at the end of every residual branch of stages 2 to 4, ratio 1/4 (GCNet, ICCVW 2019, table 4)."""
plugins = [
    dict(
        cfg=dict(type='mmattn.ContextBlock', ratio=1. / 4, init='identity'),
        position='before_add',
        stages=(False, True, True, True),
        learn=True),
]
