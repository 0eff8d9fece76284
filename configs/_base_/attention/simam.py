"""SimAM between the 3x3 convolution of every residual block and its norm (SimAM, ICML 2021, ZjjConan/SimAM,
networks, which on ImageNet and COCO have lambda 0.1)."""
plugins = [
    dict(cfg=dict(type='mmattn.SimAM', e_lambda=0.1, init='identity'), at='backbone.layer*.*.conv2', learn=True),
]
