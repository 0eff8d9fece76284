"""Shuffle attention at the end of every residual branch (wofmanaf/SA-Net, sa_resnet.py).

64 groups, fewer where a stage has fewer than 128 channels.
"""
plugins = [
    dict(
        cfg=dict(type='mmattn.ShuffleAttention', init='identity'),
        position='before_add',
        learn=True),
]
