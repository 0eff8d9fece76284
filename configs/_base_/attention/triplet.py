"""Triplet attention at the end of every residual branch (Rotate to Attend, WACV 2021, landskape-ai/triplet-attention, MODELS/resnet.py)."""
plugins = [
    dict(cfg=dict(type='mmattn.TripletAttention', init='identity'), position='before_add', learn=True),
]
