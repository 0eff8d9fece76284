"""Attention blocks for any network of torch, and for detection and segmentation on MMCV.

The public names are those of `__all__`; everything else may move. Importing this package loads
neither torch nor any mm* package; each name loads its module on first use. Blocks, `insert`,
`report`, `record`, `from_author` and `list_blocks` need torch and numpy alone; `save_pretrained`,
`from_pretrained` and `push_to_hub` also safetensors, with blocks.
"""

import ast
from importlib import import_module
from importlib.util import find_spec
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
    'from_pretrained': 'mmattn.zoo.pretrained',
    'insert': 'mmattn.plugins',
    'list_blocks': 'mmattn.zoo.catalogue',
    'list_models': 'mmattn.config.index',
    'load_model': 'mmattn.zoo.load',
    'push_to_hub': 'mmattn.zoo.pretrained',
    'record': 'mmattn.visualization.recording',
    'report': 'mmattn.plugins',
    'save_pretrained': 'mmattn.zoo.pretrained',
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
_ON_TORCH_ALONE = (
    'mmattn.blocks',
    'mmattn.blocks.base',
    'mmattn.plugins',
    'mmattn.visualization.recording',
    'mmattn.zoo.authors',
    'mmattn.zoo.catalogue',
    'mmattn.zoo.pretrained',
)
try:
    _complete = all(find_spec(name) for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg'))
except ImportError:  # raised by an import hook
    _complete = False
# `from mmattn import *` gives what works here; the other names say what they need
__all__ = [
    '__version__',
    *(name for name, module in _MODULES.items() if _complete or module in _ON_TORCH_ALONE),
]


def __getattr__(name: str):
    if name not in _PACKAGES and name not in _MODULES:
        raise AttributeError(f'module mmattn has no attribute {name}')
    try:
        module = import_module(_MODULES.get(name, f'mmattn.{name}'))
    except ImportError as error:
        problem = import_module('mmattn.compat').import_problem(error)
        if problem is None:
            raise
        raise ImportError(f'mmattn.{name}: {problem}', name=error.name) from error
    return module if name in _PACKAGES else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(['__version__', *_MODULES, *_PACKAGES])
