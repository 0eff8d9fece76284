"""What blocks a network has, where, at what cost, and whether they can learn."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmattn.blocks import AttentionBlock

from .dry_run import try_network
from .insert import plugged

_COLUMNS = ('block', 'where', 'channels', 'map', 'parameters', 'MACs', 'frozen', 'norm in eval')


@dataclass
class Row:
    """One block in its place.

    Attributes:
        path: of the block; its state-dict keys start with it.
        type: its class.
        place: where it acts, e.g. 'after backbone.layer1.0.bn3'; '' if `insert` did not put it.
        channels: of its input; None if it has no `in_channels`.
        parameters: how many numbers it learns or could.
        frozen: whether none of its parameters takes a gradient in training.
        norm_eval: whether it has batch norms that do not update in training.
        identity: whether it now returns its input, or for a replacement what the plain convolution
            would; None if that cannot be asked.
        runs: how often it runs for one image; None if the network could not be tried.
        maps: the shapes of its inputs (N, C, H, W), one for each run.
        macs: multiplications and additions in pairs, of convolutions and matrix products, for one
            image, all runs; None if the network could not be tried.
    """

    path: str
    type: str
    place: str
    channels: int | None
    parameters: int
    frozen: bool
    norm_eval: bool
    identity: bool | None
    runs: int | None = None
    maps: list[tuple[int, ...]] = field(default_factory=list)
    macs: int | None = None


@dataclass
class Report:
    """Rows for all blocks, and what a user should know.

    Attributes:
        rows: in the order of the network's modules.
        size: height and width of the image for which maps and MACs are.
        parameters, macs: of the whole network; MACs with the heads on 1000 proposals and 100
            detections. None if the network could not be tried.
        warnings: sentences, each with its remedy.
    """

    rows: list[Row]
    size: tuple[int, int]
    parameters: int
    macs: int | None
    warnings: list[str]

    def __str__(self) -> str:
        if not self.rows:
            return 'no attention blocks'
        table = [(*_COLUMNS, 'identity now')]
        for row in self.rows:
            sizes = sorted({shape[2:] for shape in row.maps}, key=math.prod, reverse=True)
            shapes = ' '.join('x'.join(map(str, sides)) for sides in sizes)
            many = f' {row.runs} times' if (row.runs or 0) > 1 else ''
            table.append(
                (
                    row.path,
                    f'{row.type} {row.place}'.strip(),
                    str(row.channels or '-'),
                    (shapes or '-') + many,
                    f'{row.parameters:,}',
                    '-' if row.macs is None else f'{row.macs / 1e6:,.1f} M',
                    _word(row.frozen),
                    _word(row.norm_eval),
                    _word(row.identity),
                )
            )
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = ['  '.join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in table]
        total = sum(row.parameters for row in self.rows)
        share = f'{total:,} of {self.parameters:,} parameters'
        if self.macs is not None:
            macs = sum(row.macs or 0 for row in self.rows)
            share += f', {macs / 1e9:,.2f} of {self.macs / 1e9:,.1f} GMACs'
        height, width = self.size
        count = f'{len(self.rows)} block{"" if len(self.rows) == 1 else "s"}'
        lines.append(f'{count}: {share}, for one image of {width}x{height}')
        return '\n'.join(lines + [f'warning: {text}' for text in self.warnings])


def report(model: nn.Module, size: tuple[int, int] = (512, 512)) -> Report:
    """What blocks a network has, where, at what cost, and whether they can learn.

    The network is tried with tensors that have a shape and no values, which takes no memory and
    little time at any size. Nothing in it changes.

    Args:
        model: a detector of mmdet, a segmentor of mmseg, or any network that takes (1, 3, H, W).
        size: H and W.

    Raises:
        ValueError: a block cannot take the map that it gets, or does not get one map; names block,
            place and map.
    """
    put = dict(plugged(model))
    blocks: dict[str, nn.Module] = {}
    for name, m in model.named_modules():  # also those that heads have of their own
        if name in put or (isinstance(m, AttentionBlock) and not _within(name, blocks)):
            blocks[name] = m
    with _modes_kept(model):
        model.train()
        training = {name: (_frozen(block), _norm_eval(block)) for name, block in blocks.items()}
        model.eval()
        tried = try_network(model, blocks, size)
        same = {name: _is_identity(block) for name, block in blocks.items()}
    rows = [
        Row(
            path=name,
            type=type(block).__name__,
            place=put[name].plugin.place if name in put else '',
            channels=getattr(block, 'in_channels', None),
            parameters=sum(p.numel() for p in block.parameters()),
            frozen=training[name][0],
            norm_eval=training[name][1],
            identity=same[name],
            runs=None if tried.reason else len(tried.seen[name].shapes),
            maps=tried.seen[name].shapes,
            macs=None if tried.reason else tried.seen[name].macs,
        )
        for name, block in blocks.items()
    ]
    warnings = [f'maps and MACs are unknown: {tried.reason}'] if tried.reason else []
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        entry = put[row.path].plugin.entry if row.path in put else row.type
        for kind, wrong in ('frozen', row.frozen), ('norm', row.norm_eval), ('idle', row.runs == 0):
            if wrong:
                groups.setdefault((entry, kind), []).append(row)
    option = 'Add learn=True to the plugin, or s'
    if not getattr(model, 'keeps_learning', False):
        option = 'Call mmattn.plugins.keep_learning(model) after model.train(), or s'
    warnings += [
        _warning(kind, found, option if found[0].place else 'S')
        for (_, kind), found in groups.items()
    ]
    macs = None if tried.reason else tried.total.macs
    return Report(rows, tuple(size), sum(p.numel() for p in model.parameters()), macs, warnings)


def _within(path: str, blocks: dict[str, nn.Module]) -> bool:
    """Whether a module belongs to one of the blocks."""
    return any(not name or path.startswith(f'{name}.') for name in blocks)


def _warning(kind: str, rows: list[Row], learn: str) -> str:
    path = rows[0].path + (f' and {len(rows) - 1} more' if len(rows) > 1 else '')
    if kind == 'frozen':
        return (
            f'{path} cannot learn: frozen with the stage around it. '
            f'{learn}et backbone.frozen_stages lower'
        )
    if kind == 'norm':
        return (
            f'{path}: the batch norms stay at the mean and variance they have, as '
            f'backbone.norm_eval=True. {learn}et norm_eval=False'
        )
    return f'{path} never runs: nothing calls the module behind which it stands. Name another place'


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Training and evaluation mode and frozenness as they were."""
    modes = [(m, m.training) for m in model.modules()]
    grads = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for value, needed in grads:
            value.requires_grad = needed


def _frozen(block: nn.Module) -> bool:
    values = list(block.parameters())
    return bool(values) and not any(value.requires_grad for value in values)


def _norm_eval(block: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) and not m.training for m in block.modules())


def _is_identity(block: nn.Module) -> bool | None:
    channels = getattr(block, 'in_channels', None)
    replaces = hasattr(block, 'plugin') and block.plugin.place.startswith('instead')
    if channels is None or (replaces and not isinstance(block, AttentionBlock)):
        return None
    like = next(block.parameters(), torch.empty(0))
    shapes = (
        block.input_shapes(1, 9, 9) if isinstance(block, AttentionBlock) else [(1, channels, 9, 9)]
    )
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).to(like) for shape in shapes]
    with torch.no_grad():
        found = block(*inputs)
        wanted = block.identity(*inputs) if isinstance(block, AttentionBlock) else inputs[0]
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=0, atol=1e-5)


def _word(value: bool | None) -> str:
    return '-' if value is None else 'yes' if value else 'no'
