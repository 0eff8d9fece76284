"""scSE after every stage (Concurrent Spatial and Channel SE, MICCAI 2018, fig. 1: after each encoder block)."""
plugins = [
    dict(cfg=dict(type='mmattn.SCSE', reduction=2, init='identity'), position='after_stage', learn=True),
]
