"""Report of the blocks of a network: place, cost, and whether they can learn."""

import math
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmattn.blocks import AttentionBlock

from .dry_run import dry_run, unchanged
from .plugin import named_plugins

_COLUMNS = (
    *('block', 'where', 'channels', 'map', 'parameters', 'MACs'),
    *('frozen', 'norm in eval', 'identity now'),
)


@dataclass
class BlockRow:
    """One block in its place.

    Attributes:
        path: path of the block; its state-dict keys start with it.
        type: name of its class.
        place: where it acts, e.g. 'after backbone.layer1.0.bn3'; '' if `insert` did not put it.
        channels: channels of its input; None if it has no `in_channels`.
        parameters: number of its weights, frozen ones included.
        frozen: whether none of its parameters takes a gradient in training.
        norm_eval: whether it has batch norms that do not update in training.
        identity: whether it now returns its input, or for a replacement what the plain convolution
            would; None if that is unknown.
        runs: runs per image; None if the dry run failed.
        maps: shapes (N, C, H, W) of its inputs, one for each run.
        macs: multiply-accumulates of convolutions and matrix products for one image, summed over
            its runs; None if the dry run failed.
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
class BlockReport:
    """The blocks of a network, one row each, and warnings. `print` it.

    Attributes:
        rows: one per block, in the order of the network's modules.
        size: height and width of the image, in pixels, that maps and MACs are given for.
        parameters: number of weights of the whole network.
        macs: MACs of the whole network, with 1000 proposals and 100 detections in the heads; None
            if the dry run failed.
        warnings: sentences, each with its remedy.
    """

    rows: list[BlockRow]
    size: tuple[int, int]
    parameters: int
    macs: int | None
    warnings: list[str]

    def __str__(self) -> str:
        return '\n'.join([self.table(), *(f'warning: {text}' for text in self.warnings)])

    def table(self) -> str:
        """A line for each block, and one for all of them; without the warnings."""
        if not self.rows:
            return 'no attention blocks'
        table = [_COLUMNS]
        for row in self.rows:
            sizes = sorted({shape[2:] for shape in row.maps}, key=math.prod, reverse=True)
            shapes = ' '.join('x'.join(map(str, sides)) for sides in sizes)
            times = f' {row.runs} times' if (row.runs or 0) > 1 else ''
            table.append(
                (
                    row.path,
                    f'{row.type} {row.place}'.strip(),
                    str(row.channels or '-'),
                    (shapes or '-') + times,
                    f'{row.parameters:,}',
                    '-' if row.macs is None else f'{row.macs / 1e6:,.1f} M',
                    _yes_no(row.frozen),
                    _yes_no(row.norm_eval),
                    _yes_no(row.identity),
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
        return '\n'.join(lines)


def report(model: nn.Module, size: tuple[int, int] = (512, 512)) -> BlockReport:
    """Report the blocks of a network: place, maps, parameters, MACs, and whether they can learn.

    The network runs with fake tensors, which takes no memory and little time at any size. It is
    not changed.

    Args:
        model: a detector of mmdet or torchvision, a segmentor of mmseg, or any network that takes
            (1, 3, H, W).
        size: H and W of the image in pixels, after the resizing that a detector does itself.

    Raises:
        ValueError: a block cannot take its input, or its input is not one map; the message names
            block, place and map.
    """
    plugins = dict(named_plugins(model))
    blocks: dict[str, nn.Module] = {}
    for path, module in model.named_modules():  # including those that heads build themselves
        if path in plugins or (isinstance(module, AttentionBlock) and not _within(path, blocks)):
            blocks[path] = module
    with unchanged(model):
        model.train()
        frozen = {path: _frozen(block) for path, block in blocks.items()}
        norm_eval = {path: _norm_eval(block) for path, block in blocks.items()}
        model.eval()
        stats = dry_run(model, blocks, size)
        identity = {path: _is_identity(block) for path, block in blocks.items()}
    rows = [
        BlockRow(
            path=path,
            type=type(block).__name__,
            place=plugins[path].plugin.place if path in plugins else '',
            channels=getattr(block, 'in_channels', None),
            parameters=sum(p.numel() for p in block.parameters()),
            frozen=frozen[path],
            norm_eval=norm_eval[path],
            identity=identity[path],
            runs=None if stats.reason else len(stats.modules[path].input_shapes),
            maps=stats.modules[path].input_shapes,
            macs=None if stats.reason else stats.modules[path].macs,
        )
        for path, block in blocks.items()
    ]
    warnings = [f'maps and MACs are unknown: {stats.reason}'] if stats.reason else []
    groups: dict[tuple, list[BlockRow]] = {}
    for row in rows:
        origin = plugins[row.path].plugin.index if row.path in plugins else row.type
        for kind, applies in (
            ('frozen', row.frozen),
            ('norm', row.norm_eval),
            ('unused', row.runs == 0),
        ):
            if applies:
                groups.setdefault((origin, kind), []).append(row)
    option = 'Add learn=True to the plugin, or s'
    if not getattr(model, 'trains_plugins', False):
        option = 'Call mmattn.plugins.keep_trainable(model) after model.train(), or s'
    warnings += [
        _warning(kind, group, option if group[0].place else 'S')
        for (_, kind), group in groups.items()
    ]
    macs = None if stats.reason else stats.total.macs
    return BlockReport(
        rows, tuple(size), sum(p.numel() for p in model.parameters()), macs, warnings
    )


def _within(path: str, blocks: dict[str, nn.Module]) -> bool:
    """Whether a module belongs to one of the blocks."""
    return any(not name or path.startswith(f'{name}.') for name in blocks)


def _warning(kind: str, rows: list[BlockRow], remedy: str) -> str:
    path = rows[0].path + (f' and {len(rows) - 1} more' if len(rows) > 1 else '')
    if kind == 'frozen':
        return (
            f'{path} cannot learn: frozen with the stage around it. '
            f'{remedy}et backbone.frozen_stages lower'
        )
    if kind == 'norm':
        return (
            f'{path}: the batch norms stay at the mean and variance they have, as '
            f'backbone.norm_eval=True. {remedy}et norm_eval=False'
        )
    return f'{path} never runs: nothing calls the module that it follows. Name another place'


def _frozen(block: nn.Module) -> bool:
    values = list(block.parameters())
    return bool(values) and not any(value.requires_grad for value in values)


def _norm_eval(block: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) and not m.training for m in block.modules())


def _is_identity(block: nn.Module) -> bool | None:
    channels = getattr(block, 'in_channels', None)
    replaces = hasattr(block, 'plugin') and block.plugin.replaces
    if channels is None or (replaces and not isinstance(block, AttentionBlock)):
        return None
    like = next(block.parameters(), torch.empty(0))
    shapes = (
        block.input_shapes(1, 9, 9) if isinstance(block, AttentionBlock) else [(1, channels, 9, 9)]
    )
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).to(like) for shape in shapes]
    with torch.no_grad():
        output = block.forward(*inputs)  # without the hooks of its place
        expected = block.identity(*inputs) if isinstance(block, AttentionBlock) else inputs[0]
    return output.shape == expected.shape and torch.allclose(output, expected, rtol=0, atol=1e-5)


def _yes_no(value: bool | None) -> str:
    return '-' if value is None else 'yes' if value else 'no'
