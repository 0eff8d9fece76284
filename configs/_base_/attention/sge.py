"""SGE at the end of every residual branch (implus/PytorchInsight, resnet_sge.py: 64 groups)."""
plugins = [
    dict(cfg=dict(type='mmattn.SGE', groups=64, init='identity'), position='before_add', learn=True),
]
