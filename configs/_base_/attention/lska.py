"""LSKA after stages 2 to 4 (LSKA, ESWA 2024, StevenLauHKHK/Large-Separable-Kernel-Attention, models/van.py); the
authors have it in every block of a backbone of their own, VAN, and name no place in a ResNet."""
plugins = [
    dict(
        cfg=dict(type='mmattn.LSKA', init='identity'),
        position='after_stage',
        stages=(False, True, True, True),
        learn=True,
    ),
]
