"""A spatial transformer after stage 1 (Spatial Transformer Networks, NIPS 2015: anywhere in a network).

It moves the features, and boxes and masks do not move along: for experiments, not for accuracy.
"""
plugins = [
    dict(
        cfg=dict(type='mmattn.SpatialTransformer', init='identity'),
        position='after_stage',
        stages=(True, False, False, False),
        learn=True),
]
