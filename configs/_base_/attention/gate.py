"""The output of stage 3 gated by that of stage 4 (mmattn.AttentionGate) on its way to neck or head (Attention U-Net, MIDL 2018).

A backbone, as no plugin has both maps. Stage 3 is read by every neck and by the auxiliary head of a segmentor;
a gate that nothing reads would have parameters without gradient. Gates on all skip connections of a U-Net are
the backbone mmattn.AttentionUNet.
"""
backbones = dict(ResNet='mmattn.GatedResNet', ResNetV1c='mmattn.GatedResNetV1c')
arguments = dict(gated_stages=(3,), gate=dict(project=False, init='identity'))
