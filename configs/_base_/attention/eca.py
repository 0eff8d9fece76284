"""ECA at the end of every residual branch (ECA-Net, CVPR 2020, BangguWu/ECANet, models/eca_resnet.py)."""
plugins = [
    dict(cfg=dict(type='mmattn.ECA', init='identity'), position='before_add', learn=True),
]
