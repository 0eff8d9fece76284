"""Pictures of what a network learned and predicts, and recordings of where it looks.

`record` needs torch alone; the other names load OpenCV and matplotlib when they are first used.
"""

from importlib import import_module
from typing import Any

from .recording import record as record

_LAZY = {
    'colourise': '.comparison',
    'compare_labels': '.comparison',
    'overlay': '.comparison',
    'plot_curves': '.curves',
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
