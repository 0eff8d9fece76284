"""EMA at the end of every residual branch, as it was compared with SE, CBAM and CA (EMA, ICASSP 2023,
YOLOonMe/EMA-attention-module); in YOLOv5 the authors have it after the last two C3 blocks of the backbone."""
plugins = [
    dict(cfg=dict(type='mmattn.EMAttention', init='identity'), position='before_add', learn=True),
]
