"""Published weights: load, publish, and convert those of authors."""

from importlib import import_module
from typing import Any

_HOME = dict(
    from_author='mmattn.zoo.authors',
    from_pretrained='mmattn.zoo.pretrained',
    list_models='mmattn.config.index',
    load_model='mmattn.zoo.load',
    push_to_hub='mmattn.zoo.pretrained',
    save_pretrained='mmattn.zoo.pretrained',
)


def __getattr__(name: str) -> Any:  # torch loads when it is needed
    if name not in _HOME:
        raise AttributeError(f'module mmattn.zoo has no attribute {name}')
    return getattr(import_module(_HOME[name]), name)
