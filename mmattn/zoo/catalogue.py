"""Catalogue of blocks: paper, parameters, MACs, start and limits of each, as a table."""

import fnmatch
import re
import sys
from dataclasses import dataclass

import torch
from torch import nn

from mmattn.blocks import AttentionBlock
from mmattn.blocks.base import registered_blocks
from mmattn.compat import is_installed
from mmattn.errors import UsageError
from mmattn.plugins.flops import flop_counter

SIZE = (256, 64, 64)  # channels, height and width at which parameters and MACs are counted
_COLUMNS = ('block', 'paper', 'weights over', 'parameters', 'MACs', 'identity at start', 'cannot')


@dataclass(frozen=True)
class BlockInfo:
    """What the catalogue knows of a block.

    Attributes:
        name: class name.
        paper: title of the source that the header of its file names; None if there is none.
        year: year of the source.
        arxiv: number of the source at arXiv.
        kind: what the attention weights run over.
        parameters: number of its weights with the authors' arguments at `SIZE`.
        macs: the same for one image: convolutions and matrix products, those between positions
            included, but not the element-wise passes of gates, whose cost is memory traffic.
        identity: whether it starts as the identity with init='paper'; with 'identity' all do.
        limits: promise of the blocks -> why this one cannot keep it, over all arguments tested.
    """

    name: str
    paper: str | None
    year: int | None
    arxiv: str | None
    kind: str
    parameters: int
    macs: int
    identity: bool
    limits: dict[str, str]


def list_blocks(pattern: str = '*') -> list[BlockInfo]:
    """Blocks whose name matches a pattern such as '*nonlocal*'; case does not matter.

    Raises:
        UsageError: no name matches.
    """
    classes = registered_blocks()
    names = [name for name in classes if fnmatch.fnmatch(name.lower(), pattern.lower())]
    if not names:
        raise UsageError(f'no block fits {pattern!r}. There are: {", ".join(classes)}.')
    return [_describe(classes[name]) for name in names]


def to_markdown(blocks: list[BlockInfo]) -> str:
    """The table as Markdown, as in the README."""
    lines = [f'| {" | ".join(_COLUMNS)} |', '|---|---|---|---:|---:|---|---|']
    for info in blocks:
        name, paper, *rest = to_cells(info)
        link = f'[{paper}](https://arxiv.org/abs/{info.arxiv})' if info.arxiv else paper
        lines.append(f'| {" | ".join([f"`{name}`", link, *rest])} |')
    return '\n'.join(lines) + '\n'


def print_table(blocks: list[BlockInfo]) -> None:
    """Print the table in the width of the terminal; uncut where output is piped."""
    if not is_installed('rich'):
        print(to_markdown(blocks), end='')
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*_COLUMNS, caption=f'parameters and MACs at {"x".join(map(str, SIZE))}')
    for column in table.columns[3:5]:
        column.justify = 'right'
    for info in blocks:
        table.add_row(*to_cells(info))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def to_cells(info: BlockInfo) -> list[str]:
    """The row of a block in a table, under the column heads of the README."""
    limits = '; '.join(f'{name.replace("_", " ")}: {why}' for name, why in info.limits.items())
    start = 'yes' if info.identity else "with `init='identity'`"
    macs = f'{info.macs / 1e9:.2f} G' if info.macs >= 1e7 else f'{info.macs / 1e6:.2f} M'
    paper = f'{info.paper} ({info.year})' if info.paper else '-'
    return [info.name, paper, info.kind, f'{info.parameters:,}', macs, start, limits or '-']


def _describe(cls: type[AttentionBlock]) -> BlockInfo:
    header = ' '.join((sys.modules[cls.__module__].__doc__ or '').split())
    source = re.search(r'Source: (.+?), [^,]*?(\d{4}), (?:arXiv (\d{4}\.\d{5})|PMLR)', header)
    paper, year, arxiv = source.groups() if source else (None, None, None)
    channels, *size = SIZE
    with torch.device('meta'):
        block = cls.build(channels).eval()
        inputs = [torch.empty(shape) for shape in block.input_shapes(1, *size)]
        with flop_counter() as counter, torch.no_grad():
            block(*inputs)
    limits = {}
    for example in cls.examples:
        limits |= cls.build(**example).limits
    return BlockInfo(
        name=cls.__name__,
        paper=paper,
        year=year and int(year),
        arxiv=arxiv,
        kind=cls.kind,
        parameters=sum(value.numel() for value in block.parameters()),
        macs=counter.get_total_flops() // 2,
        identity=_starts_as_identity(cls.build(channels)),
        limits=limits,
    )


def _starts_as_identity(block: nn.Module) -> bool:
    inputs = [torch.randn(shape) for shape in block.input_shapes(2, 4, 5)]
    with torch.no_grad():
        return torch.equal(block.eval()(*inputs), block.identity(*inputs))
