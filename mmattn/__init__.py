"""Attention for detection and segmentation on the MMCV ecosystem.

The public names are those of `__all__`; everything else may move. Importing this package loads
neither torch nor any mm* package; each name loads its module on first use.
"""

import ast
from importlib import import_module
from pathlib import Path

__version__ = '0.1.0'


def _exports(package: str) -> list[str]:
    """Names X of the lines `from .module import X as X` in a package, without importing it.

    Those of `base` are left out: they are no blocks.
    """
    source = Path(__file__).parent.joinpath(package, '__init__.py').read_text(encoding='utf-8')
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    return [
        alias.asname
        for node in imports
        for alias in node.names
        if node.level == 1 and node.module != 'base' and alias.asname == alias.name
    ]


_MODULES = {  # public name -> module that defines or exports it
    **dict.fromkeys(_exports('blocks'), 'mmattn.blocks'),
    **dict.fromkeys(_exports('models'), 'mmattn.models'),
    'AttentionBlock': 'mmattn.blocks.base',
    'PairwiseBlock': 'mmattn.blocks.base',
    'Predictor': 'mmattn.inference.predictor',
    'from_author': 'mmattn.zoo.authors',
    'insert': 'mmattn.plugins',
    'list_blocks': 'mmattn.zoo.catalogue',
    'list_models': 'mmattn.config.index',
    'load_model': 'mmattn.zoo.load',
    'record': 'mmattn.visualization.recording',
    'report': 'mmattn.plugins',
    'test': 'mmattn.engine.test',
    'train': 'mmattn.engine.train',
}
_PACKAGES = (  # `mmattn.plugins` and the like without an import of their own
    'blocks',
    'engine',
    'inference',
    'models',
    'ops',
    'plugins',
    'visualization',
    'zoo',
)
__all__ = ['__version__', *_MODULES]


def __getattr__(name: str):
    if name in _PACKAGES:
        return import_module(f'mmattn.{name}')
    if name not in _MODULES:
        raise AttributeError(f'module mmattn has no attribute {name}')
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
