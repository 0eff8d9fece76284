"""BAM at the three bottlenecks of a ResNet, after stages 1, 2 and 3 (BAM, BMVC 2018, fig. 1)."""
plugins = [
    dict(
        cfg=dict(type='mmattn.BAM', reduction=16, dilation=4, init='identity'),
        position='after_stage',
        stages=(True, True, True, False),
        learn=True),
]
