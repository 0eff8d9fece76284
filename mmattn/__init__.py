"""Attention for detection and segmentation on the MMCV ecosystem.

Importing this loads neither torch nor any mm* package; the names below do, when first used.
"""

from importlib import import_module

__version__ = '0.1.0'

_HOME = {
    'AFNB': 'mmattn.blocks',
    'APNB': 'mmattn.blocks',
    'BAM': 'mmattn.blocks',
    'CAM': 'mmattn.blocks',
    'CBAM': 'mmattn.blocks',
    'CMPESE': 'mmattn.blocks',
    'ContextBlock': 'mmattn.blocks',
    'CrissCrossAttention': 'mmattn.blocks',
    'DualAttention': 'mmattn.blocks',
    'NonLocal2d': 'mmattn.blocks',
    'PAM': 'mmattn.blocks',
    'ResidualAttention': 'mmattn.blocks',
    'SCSE': 'mmattn.blocks',
    'SE': 'mmattn.blocks',
    'SGE': 'mmattn.blocks',
    'SKConv2d': 'mmattn.blocks',
    'ShuffleAttention': 'mmattn.blocks',
    'SimplifiedNonLocal': 'mmattn.blocks',
    'SpatialTransformer': 'mmattn.blocks',
    'ANNHead': 'mmattn.models',
    'CCHead': 'mmattn.models',
    'CMPESEResNet': 'mmattn.models',
    'CMPESEResNetV1c': 'mmattn.models',
    'DAHead': 'mmattn.models',
    'EncoderDecoder': 'mmattn.models',
    'FasterRCNN': 'mmattn.models',
    'GCHead': 'mmattn.models',
    'MaskRCNN': 'mmattn.models',
    'NLHead': 'mmattn.models',
    'ResidualAttentionNet': 'mmattn.models',
    'RetinaNet': 'mmattn.models',
    'SKNet': 'mmattn.models',
    'insert': 'mmattn.plugins',
}
_PARTS = ('blocks', 'ops', 'plugins', 'visualization', 'zoo')
__all__ = ['__version__', *_HOME]


def __getattr__(name: str):
    if name in _PARTS:
        return import_module(f'mmattn.{name}')
    if name not in _HOME:
        raise AttributeError(f'module mmattn has no attribute {name}')
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
