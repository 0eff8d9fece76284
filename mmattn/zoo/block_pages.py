"""A section for each block, in Markdown: paper, formula, arguments, differences, places, cost.

All of it is read from the docstrings, the catalogue and the placements.
"""

import ast
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from mmattn.blocks.base import registered_blocks
from mmattn.config.names import CONFIG_FOLDERS

from .catalogue import SIZE, BlockInfo, to_cells


@dataclass(frozen=True)
class BlockText:
    """What docstrings and placements say of a block.

    Attributes:
        summary: what the block does, in a sentence.
        formula: text of its class before the arguments; the first paragraph has the equation.
        arguments: (names, meaning) of the arguments.
        raises: errors and their reasons; '' if none are named.
        origin: 'Source' -> the paper, 'Reference code' -> the code, and what differs from it.
        remarks: further paragraphs of the header of its file.
        placements: name for `--attention` -> where that puts the block.
        maps: names of the maps in a recording; none if those are of blocks in it.
    """

    summary: str
    formula: str
    arguments: tuple[tuple[str, str], ...]
    raises: str
    origin: dict[str, str]
    remarks: tuple[str, ...]
    placements: dict[str, str]
    maps: tuple[str, ...]

    @property
    def equation(self) -> str:
        """The first paragraph of the formula, in one line."""
        return _joined(self.formula.partition('\n\n')[0])


def block_text(name: str) -> BlockText:
    """Read the docstrings and the placements of a registered block."""
    cls = registered_blocks()[name]
    header = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or '')
    summary, _, origin = header.partition('\n\n')
    formula, arguments, raises = _split(inspect.cleandoc(cls.__doc__ or ''))
    return BlockText(
        summary=_joined(summary),
        formula=formula,
        arguments=arguments,
        raises=raises,
        origin=_origin(origin),
        remarks=tuple(_joined(p) for p in origin.split('\n\n') if 'Source:' not in p and p),
        placements=_placements(name),
        maps=_maps(cls),
    )


def to_sections(blocks: list[BlockInfo]) -> str:
    """The blocks as sections of a Markdown document, as in docs/blocks.md."""
    return '\n'.join(_section(info) for info in blocks)


def _section(info: BlockInfo) -> str:
    text = block_text(info.name)
    parts = [f'## {info.name}', text.summary, f'```\n{text.formula}\n```']
    if text.arguments:
        parts.append('\n'.join(f'- `{name}`: {meaning}' for name, meaning in text.arguments))
    if text.raises:
        parts.append(f'Raises {text.raises}')
    parts += text.remarks
    rows = list(text.origin.items())
    rows += [(f'--attention {name}', place) for name, place in text.placements.items()]
    maps = ', '.join(f'`{name}`' for name in text.maps)
    rows.append(('Maps in a recording', maps or 'those of the blocks in it'))
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


def _split(doc: str) -> tuple[str, tuple[tuple[str, str], ...], str]:
    """Docstring of a class -> text before its sections, arguments, and what it raises."""
    parts = re.split(r'^(Args|Raises):\n', doc, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    entries = re.split(r'^ {4}(?=\S)', sections.get('Args', ''), flags=re.MULTILINE)[1:]
    arguments = tuple(
        (name, _joined(meaning)) for name, _, meaning in (e.partition(': ') for e in entries)
    )
    return parts[0].strip(), arguments, _joined(sections.get('Raises', ''))


def _origin(text: str) -> dict[str, str]:
    """Source and reference code of a header."""
    pattern = r'^(Source|Reference code): (.+?)(?=^\S|\Z)'
    found = re.findall(pattern, text, flags=re.MULTILINE | re.DOTALL)
    return {key: _joined(value) for key, value in found}


def _maps(cls: type) -> tuple[str, ...]:
    names = {m.recorded_name for _, m in inspect.getmembers(cls) if hasattr(m, 'recorded_name')}
    return tuple(sorted(names))


def _placements(name: str) -> dict[str, str]:
    """Files of `_base_/attention` that put a block somewhere: name -> the docstring."""
    folder = next(f for f in CONFIG_FOLDERS if f.is_dir()) / '_base_' / 'attention'
    return {
        path.stem: _docstring(path) for path in sorted(folder.glob('*.py')) if _uses(path, name)
    }


def _uses(path: Path, name: str) -> bool:
    text = path.read_text(encoding='utf-8')
    return bool(re.search(rf'\bmmattn\.{name}(ResNet)?\b', text))


def _docstring(path: Path) -> str:
    return _joined(ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '')
