"""Gates, which are bound by memory, against their authors' operations."""

from mmattn.blocks import CBAM, SCSE, SE, SGE, ContextBlock, ShuffleAttention

from .. import authors_operations as authors
from . import restated
from .bench import Bench
from .contenders import BASELINE, Contender, compare, compiled, in_layouts, ours

_BLOCKS = {
    SE: authors.se,
    SGE: authors.sge,
    CBAM: authors.cbam,
    ContextBlock: restated.context_block,
    ShuffleAttention: authors.shuffle_attention,
    SCSE: authors.scse,
}

_FULL = ('bf16', (4, 512, 100, 100))
_SMALL = ('fp32', (2, 128, 3, 4))


def measure(bench: Bench) -> None:
    """All in both memory formats."""
    for cls, make in _BLOCKS.items():
        _compare(bench, cls, in_layouts(_pair(make)))


def measure_compiled(bench: Bench) -> None:
    """Three of them, both sides compiled."""
    for cls, make in list(_BLOCKS.items())[: 1 if bench.small else 3]:
        _compare(bench, cls, compiled(in_layouts(_pair(make))))


def _pair(make) -> list[Contender]:
    return [ours(), Contender('restated', BASELINE, make)]


def _compare(bench: Bench, cls: type, contenders: list[Contender]) -> None:
    dtype, shape = _SMALL if bench.small else _FULL
    compare(bench, cls.build(shape[1]), dtype, shape, contenders)
