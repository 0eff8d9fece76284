"""LSK after stages 2 to 4 (LSKNet, ICCV 2023, zcablii/LSKNet, lsknet.py); the authors have it in every block of a
backbone of their own, and name no place in a ResNet."""
plugins = [
    dict(
        cfg=dict(type='mmattn.LSK', init='identity'),
        position='after_stage',
        stages=(False, True, True, True),
        learn=True,
    ),
]
