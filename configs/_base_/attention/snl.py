"""Simplified non-local, one block, before the last residual block of stage 3 (GCNet, ICCVW 2019, table 1)."""
plugins = [
    dict(
        cfg=dict(type='mmattn.SimplifiedNonLocal', init='identity'),
        position='after_add',
        stages=(False, False, True, False),
        blocks=(-2, ),
        learn=True),
]
