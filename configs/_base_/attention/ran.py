"""Residual attention modules after stages 1, 2 and 3, pooled 3 times, twice and once (RAN, CVPR 2017, table 2).

The authors' networks, Attention-56 and Attention-92, are the backbone mmattn.ResidualAttentionNet.
"""
plugins = [
    dict(
        cfg=dict(type='mmattn.ResidualAttention', depth=3, init='identity'),
        position='after_stage',
        stages=(True, False, False, False),
        learn=True),
    dict(
        cfg=dict(type='mmattn.ResidualAttention', depth=2, init='identity'),
        position='after_stage',
        stages=(False, True, False, False),
        learn=True),
    dict(
        cfg=dict(type='mmattn.ResidualAttention', depth=1, init='identity'),
        position='after_stage',
        stages=(False, False, True, False),
        learn=True),
]
