"""Shuffle attention at the end of every residual branch (wofmanaf/SA-Net, sa_resnet.py: 64 groups)."""
plugins = [
    dict(
        cfg=dict(type='mmattn.ShuffleAttention', groups=64, init='identity'),
        position='before_add',
        learn=True),
]
