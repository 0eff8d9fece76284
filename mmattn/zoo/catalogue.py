"""The blocks as a table: where each is from, what it weighs, what it costs, what it cannot do."""

import fnmatch
import re
import sys
from dataclasses import dataclass

import torch
from torch import nn

from mmattn.blocks import AttentionBlock
from mmattn.blocks.base import registered_blocks
from mmattn.errors import UsageError
from mmattn.plugins.flops import flop_counter

SIZE = (256, 64, 64)  # channels, height and width at which parameters and MACs are counted
_COLUMNS = ('block', 'paper', 'weights over', 'parameters', 'MACs', 'identity at start', 'cannot')


@dataclass(frozen=True)
class Block:
    """A row of the table.

    Attributes:
        name: the class.
        paper, year, arxiv: from the header of its file; None where that names none.
        kind: what the attention weights run over.
        parameters, macs: of the block with its authors' arguments at `SIZE`, one image. Counted are
            convolutions and matrix products, those between positions included; not the passes over
            the map that gates make, whose cost is memory traffic.
        identity: whether it starts as the identity with init='paper'; with 'identity' all do.
        limits: promise -> why it cannot be kept; of any arguments that the tests try.
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


def list_blocks(pattern: str = '*') -> list[Block]:
    """Rows for the blocks whose name fits a pattern such as '*nonlocal*', whatever the case.

    Raises:
        UsageError: no name fits.
    """
    every = registered_blocks()
    names = [name for name in every if fnmatch.fnmatch(name.lower(), pattern.lower())]
    if not names:
        raise UsageError(f'no block fits {pattern!r}. There are: {", ".join(every)}.')
    return [_describe(every[name]) for name in names]


def markdown(rows: list[Block]) -> str:
    """The table as Markdown, in the form of the README."""
    lines = [f'| {" | ".join(_COLUMNS)} |', '|---|---|---|---:|---:|---|---|']
    for row in rows:
        name, paper, *rest = _cells(row)
        link = f'[{paper}](https://arxiv.org/abs/{row.arxiv})' if row.arxiv else paper
        lines.append(f'| {" | ".join([f"`{name}`", link, *rest])} |')
    return '\n'.join(lines) + '\n'


def show(rows: list[Block]) -> None:
    """Print the table to the terminal, as wide as it is; not cut where output is piped."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*_COLUMNS, caption=f'parameters and MACs at {"x".join(map(str, SIZE))}')
    for column in table.columns[3:5]:
        column.justify = 'right'
    for row in rows:
        table.add_row(*_cells(row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def _cells(row: Block) -> list[str]:
    limits = '; '.join(f'{name.replace("_", " ")}: {why}' for name, why in row.limits.items())
    start = 'yes' if row.identity else "with `init='identity'`"
    macs = f'{row.macs / 1e9:.2f} G' if row.macs >= 1e7 else f'{row.macs / 1e6:.2f} M'
    paper = f'{row.paper} ({row.year})' if row.paper else '-'
    return [row.name, paper, row.kind, f'{row.parameters:,}', macs, start, limits or '-']


def _describe(cls: type[AttentionBlock]) -> Block:
    header = ' '.join((sys.modules[cls.__module__].__doc__ or '').split())
    source = re.search(r'Source: (.+?), [^,]*?(\d{4}), arXiv (\d{4}\.\d{5})', header)
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
    return Block(
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
