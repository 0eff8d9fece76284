"""Record the attention maps of blocks while a model runs unchanged."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmattn.blocks import AttentionBlock

_CENTRE = ((0.5, 0.5),)


@contextmanager
def record(
    model: nn.Module, queries: Sequence[tuple[float, float]] = _CENTRE
) -> Iterator[dict[str, dict[str, list[Tensor]]]]:
    """Record the attention maps of every block in a model.

    Example::

        with record(model, queries=[(0.5, 0.5)]) as maps:
            model(images)
        maps['backbone.layer1.0.cbam']['channel'][0]  # (N, C)

    Copies of the model that are made meanwhile are recorded, too: predictors run one.

    Args:
        model: any module that contains blocks of mmattn, or is one.
        queries: for pairwise blocks, the positions whose maps are computed: row and column as
            fractions of height and width, from 0 to below 1, for maps of any size.

    Yields:
        a dict that is filled as the model runs: path of the block ('' for the model itself) -> name
        of the map -> one tensor per use, detached, in the order of use. Gates: 'channel' (N, C),
        'spatial' (N, 1, H, W), 'group' (N, G, H, W), 'mask' (N, C, H, W), 'rows' (N, C, H),
        'columns' (N, C, W), 'selection' (N, branches, H, W); BAM, which adds before the sigmoid,
        has 'channel logits' and 'spatial logits'; `ShuffleAttention` has C / 2 of them in both.
        Weights that sum to 1: 'context' (N, 1, H, W), 'branches' (N, branches, C). Weights of the
        values: 'pairwise' (N, Q, h, w), with heads (N, heads, Q, h, w), with pooled keys (N, Q, S),
        and 'channel pairs' (N, C, C).
        A factor of any size and sign: 'response' (N, C, H, W). 'theta' (N, 2, 3) of the spatial
        transformer.

    Raises:
        ValueError: no block in the model; no query, or one out of range; the model is already
            being recorded.
    """
    positions = [(float(row), float(column)) for row, column in queries]
    if not positions or not all(0 <= value < 1 for pair in positions for value in pair):
        raise ValueError(f'record: queries={list(queries)}, allowed (row, column) in [0, 1), some')
    maps: dict[str, dict[str, list[Tensor]]] = {}

    def store(use: Use) -> None:
        result = use.result
        if use.by is not None:
            with torch.no_grad():
                result = use.by(_indices(positions, use.args[0]), *use.args)
        uses = maps.setdefault(use.path, {}).setdefault(use.name, [])
        uses.append(result.detach().clone())

    with watching(model, store):
        yield maps


class Use(NamedTuple):
    """One use of the attention of a block.

    Attributes:
        path: path of the block in the model.
        block: the block.
        name: name of the map, as in `record`.
        result: the map; if there is `by`, what the recorded method returned.
        by: (queries, *args) -> the map for given queries; None if the result is the map.
        args: arguments of the recorded method.
    """

    path: str
    block: AttentionBlock
    name: str
    result: Tensor
    by: Callable | None
    args: tuple


@contextmanager
def watching(model: nn.Module, watch: Callable[[Use], None]) -> Iterator[None]:
    """Call a function for every use of the attention of a block in a model.

    Raises:
        ValueError: no block in the model; it is being watched already.
    """
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, AttentionBlock)}
    if not blocks:
        raise ValueError(f'record: no block of mmattn in {type(model).__name__}')
    if any(getattr(block._recorder, 'active', False) for block in blocks.values()):
        raise ValueError(f'record: {type(model).__name__} is being recorded already')
    recording = _Recording(watch)
    for path, block in blocks.items():
        block._recorder = _Recorder(path, recording)
    try:
        yield
    finally:
        recording.active = False
        for block in blocks.values():
            del block._recorder


@dataclass
class _Recording:
    watch: Callable[[Use], None]
    active: bool = True


class _Recorder:
    """Passes on the uses of one block, and of copies of it, while a recording lasts.

    Predictors run a copy of the network that they are given.
    """

    def __init__(self, path: str, recording: _Recording) -> None:
        self.path, self.recording = path, recording

    @property
    def active(self) -> bool:
        return self.recording.active

    def __call__(self, block: AttentionBlock, *use: Any) -> None:
        if self.active:
            self.recording.watch(Use(self.path, block, *use))

    def __deepcopy__(self, memo: dict) -> '_Recorder':
        return self

    def __reduce__(self) -> tuple:
        return type(None), ()  # no recording in a file


def _indices(positions: list[tuple[float, float]], like: Tensor) -> Tensor:
    """Positions as fractions -> indices row * W + column in the last two axes of a tensor."""
    height, width = like.shape[-2:]
    indices = [int(row * height) * width + int(column * width) for row, column in positions]
    return torch.tensor(indices, device=like.device)
