"""CMPE-SE instead of every residual addition (arXiv 1807.08920, section 3): a backbone, as no plugin has both maps."""
backbones = dict(ResNet='mmattn.CMPESEResNet', ResNetV1c='mmattn.CMPESEResNetV1c')
arguments = dict(cmpese=dict(reduction=16, view='pair1x1', init='identity'))
