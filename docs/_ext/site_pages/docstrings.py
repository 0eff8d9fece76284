"""Small repairs of what autodoc makes of docstrings."""

import re
from inspect import isclass
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import signature, stringify_signature

from mmattn.blocks import AttentionBlock

_LETTER = re.compile(r'^(\s*:\w+ [^:]+:) ([A-Za-z]\.)$')


def setup(app: Sphinx) -> None:
    app.connect('autodoc-process-signature', _signature)
    app.connect('autodoc-process-docstring', _no_lists, priority=600)  # after napoleon


def _signature(
    app: Sphinx, what: str, name: str, value: Any, options: Any, arguments: str, result: str
) -> tuple[str, str] | None:
    """The arguments of a block are those of `__init__`; `__new__` takes any, for all blocks."""
    if not (isclass(value) and issubclass(value, AttentionBlock)):
        return None
    found = signature(value.__init__, bound_method=True).replace(return_annotation=None)
    return stringify_signature(found, show_return_annotation=False, unqualified_typehints=True), ''


def _no_lists(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """A field such as `in_channels: C.` is not the item C of a list."""
    lines[:] = [_LETTER.sub(r'\1 \\\2', line) for line in lines]
