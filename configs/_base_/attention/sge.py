"""SGE at the end of every residual branch (implus/PytorchInsight, resnet_sge.py).

64 groups, fewer where a stage has fewer than 64 channels.
"""
plugins = [
    dict(cfg=dict(type='mmattn.SGE', init='identity'), position='before_add', learn=True),
]
