"""Published weights: making them, finding them, and taking over those of authors."""

from typing import Any


def __getattr__(name: str) -> Any:  # torch loads when it is needed
    if name == 'from_author':
        from .authors import from_author

        return from_author
    raise AttributeError(f'module mmattn.zoo has no attribute {name}')
