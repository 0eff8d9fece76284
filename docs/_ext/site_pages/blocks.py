"""A page for each block: figure, equation, arguments, differences, places, cost, viewing."""

import re
from functools import cache

from mmattn.blocks.base import registered_blocks
from mmattn.zoo.block_pages import BlockText, block_text
from mmattn.zoo.catalogue import SIZE, BlockInfo, list_blocks, to_cells

from .data_flow import trace
from .drawing import draw_flow
from .formula import parse_formula
from .model_zoo import Row, rows
from .tables import ROOT, escape, table


def names() -> list[str]:
    """Blocks that have a page: those of mmattn."""
    blocks = registered_blocks().items()
    return [name for name, cls in blocks if cls.__module__.startswith('mmattn.')]


def pages(repository: str) -> dict[str, str]:
    """Name -> content: `index.md`, and for each block its page and its figure.

    Args:
        repository: address of the repository at GitHub.
    """
    blocks = [info for info in list_blocks() if info.name in names()]
    files = {'index.md': _index(blocks)}
    for info in blocks:
        figure = f'Data flow of {info.name}: {block_text(info.name).summary}'
        files[f'{info.name}.md'] = page(info, repository)
        files[f'{info.name}.svg'] = draw_flow(trace(registered_blocks()[info.name]), figure)
    return files


def page(info: BlockInfo, repository: str) -> str:
    """The page of one block, in MyST Markdown."""
    text, name = block_text(info.name), info.name
    formula = parse_formula(text.equation)
    code, _, differences = text.origin.get('Reference code', '').partition('. ')
    source = escape(text.origin.get('Source', ''))
    if info.arxiv:
        address = f'https://arxiv.org/abs/{info.arxiv}'
        source = source.replace(f'arXiv {info.arxiv}', f'[arXiv {info.arxiv}]({address})')
    file = f'mmattn/blocks/{registered_blocks()[name].__module__.rpartition(".")[2]}.py'
    parts = [
        f'# {name}',
        text.summary,
        f'```{{figure}} {name}.svg\n:alt: Data flow of {name}\n\nThe data flow with the default '
        'arguments, drawn from a run of the module. Yellow steps have weights.\n```',
        '## Equation',
        *(f'```{{math}}\n{equation}\n```' for equation in formula.equations),
    ]
    if formula.remarks:
        parts.append(f'{escape("; ".join(formula.remarks))}.')
    parts += [
        '## Shapes and arguments',
        f'```{{eval-rst}}\n.. autoclass:: mmattn.{name}\n```',
        '## Paper and code',
        f'- Paper: {source}',
        f"- The authors' code: {_with_links(escape(code))}",
        f'- Ours: [{file}]({repository}/blob/main/{file})',
        "## What differs from the authors' code",
        escape(differences) or 'Nothing.',
        *map(escape, text.remarks),
        '## Where it goes',
        *_places(text, name),
        '## Cost',
        *_costs(info, text),
        '## How to look at it',
        *_view(text),
    ]
    measured = _measured(text)
    if measured:
        parts += ['## Measured here', measured]
    return '\n\n'.join(_joined_lists(parts)) + '\n'


def _index(blocks: list[BlockInfo]) -> str:
    cells = [
        [f'[{info.name}]({info.name}.md)', info.kind, escape(block_text(info.name).summary)]
        for info in blocks
    ]
    toctree = '\n'.join(info.name for info in blocks)
    return (
        '# The blocks, one by one\n\n'
        "Each page has the figure, the equation, the arguments, what differs from the authors' "
        'code, the cost, and the command that shows the attention. '
        '[All blocks on one page](../../blocks.md) has the same as text.\n\n'
        f'{table(["block", "weights over", "what it does"], cells)}\n\n'
        f'```{{toctree}}\n:hidden:\n\n{toctree}\n```\n'
    )


def _with_links(code: str) -> str:
    """Names of repositories at GitHub as links."""
    pattern = r'(^|; )([\w-]+/[\w.-]+)(?=[, ])'
    return re.sub(pattern, r'\1[\2](https://github.com/\2)', code)


def _places(text: BlockText, name: str) -> list[str]:
    if not text.placements:
        return [
            f'No `--attention` puts it into a network; in your own code `mmattn.{name}` is an '
            '`nn.Module`.'
        ]
    first = next(iter(text.placements))
    cells = [[f'`{option}`', escape(place)] for option, place in text.placements.items()]
    return [
        table(['`--attention`', 'place'], cells),
        f'```\nmmattn train CONFIG --attention {first}\n```',
        '[Positions in a network](../../positions.md) explains the words.',
    ]


def _costs(info: BlockInfo, text: BlockText) -> list[str]:
    _, _, _, parameters, macs, start, limits = to_cells(info)
    size = 'x'.join(map(str, SIZE))
    cells = [[parameters, macs, start, escape(limits)]]
    parts = [
        f'One block at {size}, by `mmattn list-blocks {info.name}`:',
        table(['parameters', 'MACs', 'identity at start', 'cannot'], cells),
    ]
    heads, costs = _cost_rows()
    chosen = [costs[f'`{name}`'] for name in text.placements if f'`{name}`' in costs]
    if chosen:
        parts += [
            'In a whole detector, in brackets the difference to the plain one, from '
            '[What each block costs](../../costs.md), which has the command:',
            table(heads, chosen),
        ]
    return parts


@cache
def _cost_rows() -> tuple[list[str], dict[str, list[str]]]:
    """Heads and rows of the table of docs/costs.md, by the first cell."""
    text = (ROOT / 'docs' / 'costs.md').read_text(encoding='utf-8')
    lines = [line.strip(' |').split(' | ') for line in text.splitlines() if line.startswith('|')]
    heads, _, *body = lines
    return heads, {cells[0]: cells for cells in body}


def _view(text: BlockText) -> list[str]:
    maps = ', '.join(f'`{name}`' for name in text.maps)
    recorded = f'A recording has {maps}' if maps else 'A recording has the maps of the blocks in it'
    option = f' --attention {next(iter(text.placements))}' if text.placements else ''
    query = ' --query 0.6 0.3' if {'pairwise', 'channel pairs'} & {*text.maps} else ''
    return [
        f'```\nmmattn view-attention CONFIG CHECKPOINT photo.jpg{query}\n```',
        f'CONFIG and CHECKPOINT are of a network that has the block, as after `mmattn train '
        f'CONFIG{option}`. {recorded}; {{py:func}}`mmattn.record` describes their shapes, and '
        '[Reading an attention map](../../guide.md#reading-an-attention-map) what they tell.',
    ]


def _measured(text: BlockText) -> str:
    """Rows of the model zoo with a result of ours and with this block as a plugin."""
    chosen = [row for row in rows() if row.measured and _attention_of(row) in text.placements]
    if not chosen:
        return ''
    cells = [[f'`{row.name}`', escape(row.data), escape(row.measured)] for row in chosen]
    note = 'One seed proves no gain; [A complete ablation](../../ablation.md) says what does.'
    return f'{table(["model", "data", "result"], cells)}\n\n{note}'


@cache
def _attention_names() -> set[str]:
    return {name for block in names() for name in block_text(block).placements}


def _attention_of(row: Row) -> str:
    """The part of a name that is one of `--attention`; the longest, as gc_r4 has gc in it."""
    parts = [name for name in _attention_names() if f'_{name}_' in f'{row.name}_']
    return max(parts, key=len, default='')


def _joined_lists(parts: list[str]) -> list[str]:
    """Parts with the items of a list in one part."""
    joined: list[str] = []
    for part in parts:
        if part.startswith('- ') and joined and joined[-1].startswith('- '):
            joined[-1] += f'\n{part}'
        else:
            joined.append(part)
    return joined
