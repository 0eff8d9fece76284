"""Equations as MathML, which browsers draw without a script and without a network."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def to_mathml(latex: str, display: str = 'inline') -> str:
    """The `<math>` element of an equation.

    Args:
        latex: with `&` or a line break it is set as aligned lines.
        display: 'inline' or 'block'.

    Raises:
        ValueError: a command that the converter does not know, which it would write as it is.
    """
    latex = latex.replace('{aligned}', '{align*}')
    if (r'\\' in latex or '&' in latex) and r'\begin' not in latex:
        latex = rf'\begin{{align*}}{latex}\end{{align*}}'
    math = convert(latex, display=display)
    if unknown := re.search(r'\\\w+', math):
        raise ValueError(f'unknown command {unknown[0]}')
    return math


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer('mathml', (_inline, None), (_block, None))


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    _write(translator, node, 'span', 'inline')


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    _write(translator, node, 'div', 'block')


def _write(translator: HTML5Translator, node: nodes.Element, tag: str, display: str) -> None:
    try:
        math = to_mathml(node.astext(), display)
    except Exception as error:  # the converter has no error of its own for all faults
        logger.warning('%r is no equation: %s', node.astext(), error, location=node)
        math = f'<code>{translator.encode(node.astext())}</code>'
    start = translator.starttag(node, tag, '', CLASS='math notranslate nohighlight')
    if node.get('number'):
        math += f'<span class="eqno">({node["number"]})</span>'
    translator.body.append(f'{start}{math}</{tag}>')
    raise nodes.SkipNode
