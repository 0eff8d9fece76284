"""A section for each block, in Markdown: paper, formula, arguments, differences, places, cost.

All of it is read from the docstrings, the catalogue and the placements.
"""

import ast
import inspect
import re
import sys
from pathlib import Path

from mmattn.blocks.base import registered_blocks
from mmattn.config.names import CONFIG_FOLDERS

from .catalogue import SIZE, BlockInfo, to_cells


def to_sections(blocks: list[BlockInfo]) -> str:
    """The blocks as sections of a Markdown document, as in docs/blocks.md."""
    return '\n'.join(_section(info) for info in blocks)


def _section(info: BlockInfo) -> str:
    cls = registered_blocks()[info.name]
    header = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or '')
    subject, _, origin = header.partition('\n\n')
    text, arguments, raises = _split(inspect.cleandoc(cls.__doc__ or ''))
    parts = [f'## {info.name}', _joined(subject), f'```\n{text}\n```']
    if arguments:
        parts.append('\n'.join(f'- `{name}`: {meaning}' for name, meaning in arguments))
    if raises:
        parts.append(f'Raises {raises}')
    parts += [_joined(p) for p in origin.split('\n\n') if 'Source:' not in p]
    rows = _origin(origin)
    rows += [(f'--attention {name}', text) for name, text in _placements(info.name)]
    rows.append(('Maps in a recording', _maps(cls)))
    _, _, kind, parameters, macs, start, limits = to_cells(info)
    size = 'x'.join(map(str, SIZE))
    rows += [
        ('Weights over', kind),
        (f'Parameters, MACs at {size}', f'{parameters}, {macs}'),
        ('Identity at start', start),
        ('Cannot', limits),
    ]
    cells = ((key, value.replace('|', r'\|')) for key, value in rows)
    parts.append('\n'.join(['| | |', '|---|---|', *(f'| {k} | {v} |' for k, v in cells)]))
    return '\n\n'.join(parts) + '\n'


def _joined(text: str) -> str:
    return ' '.join(text.split())


def _split(doc: str) -> tuple[str, list[tuple[str, str]], str]:
    """Docstring of a class -> text before its sections, arguments, and what it raises."""
    parts = re.split(r'^(Args|Raises):\n', doc, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    entries = re.split(r'^ {4}(?=\S)', sections.get('Args', ''), flags=re.MULTILINE)[1:]
    arguments = [
        (name, _joined(meaning)) for name, _, meaning in (e.partition(': ') for e in entries)
    ]
    return parts[0].strip(), arguments, _joined(sections.get('Raises', ''))


def _origin(text: str) -> list[tuple[str, str]]:
    """Source and reference code of a header."""
    pattern = r'^(Source|Reference code): (.+?)(?=^\S|\Z)'
    found = re.findall(pattern, text, flags=re.MULTILINE | re.DOTALL)
    return [(key, _joined(value)) for key, value in found]


def _maps(cls: type) -> str:
    names = [m.recorded_name for _, m in inspect.getmembers(cls) if hasattr(m, 'recorded_name')]
    return ', '.join(f'`{name}`' for name in sorted(set(names))) or 'those of the blocks in it'


def _placements(name: str) -> list[tuple[str, str]]:
    """Files of `_base_/attention` that put a block somewhere: name, and the docstring."""
    folder = next(f for f in CONFIG_FOLDERS if f.is_dir()) / '_base_' / 'attention'
    return [
        (path.stem, _docstring(path)) for path in sorted(folder.glob('*.py')) if _uses(path, name)
    ]


def _uses(path: Path, name: str) -> bool:
    text = path.read_text(encoding='utf-8')
    return bool(re.search(rf'\bmmattn\.{name}(ResNet)?\b', text))


def _docstring(path: Path) -> str:
    return _joined(ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '')
