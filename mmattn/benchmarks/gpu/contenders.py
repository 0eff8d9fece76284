"""Times of ways to compute the same: ours, baselines, and others that are shown without a ratio."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .bench import DTYPES, Bench, distance, perturb_constants
from .timing import launches, peak_bytes, time_calls, time_graph

OURS, BASELINE, OTHER = 'ours', 'baseline', 'other'
FORMATS = dict(nchw=torch.contiguous_format, nhwc=torch.channels_last)
MEASURES = ('forward', 'step')
_CACHE_BYTES = 160e6  # of all inputs of a case: several times the L2 cache of a GPU
# limits of differences: convolutions of fp32 use TF32; in gradients rounding decides a few maxima
_DIFFERENCE = {torch.float32: 1e-2, torch.bfloat16: 5e-2}
_STEP_FACTOR = 4

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """A way to compute the function of a block.

    Attributes:
        name: name in the report.
        role: 'ours', 'baseline', or 'other', which is in no ratio.
        make: block -> function of a map, with the block's weights.
        layout: memory format of map and weights, 'nchw' or 'nhwc'.
        compiled: whether the function is compiled.
        variant: context in which it runs, such as another precision.
    """

    name: str
    role: str
    make: Callable[[nn.Module], Forward]
    layout: str = 'nchw'
    compiled: bool = False
    variant: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


def ours(name: str = 'ours', role: str = OURS, **fields: Any) -> Contender:
    """The block itself."""
    return Contender(name, role, lambda block: block, **fields)


def in_layouts(contenders: Iterable[Contender]) -> list[Contender]:
    """Each contender in both memory formats."""
    return [replace(c, layout=layout) for c in contenders for layout in FORMATS]


def compiled(contenders: Iterable[Contender]) -> list[Contender]:
    return [replace(c, compiled=True) for c in contenders]


def compare(
    bench: Bench,
    block: nn.Module,
    dtype: str,
    shape: tuple[int, int, int, int],
    contenders: Sequence[Contender],
    measures: Sequence[str] = MEASURES,
) -> None:
    """Write a row of kind 'time' for each contender and measure, and whether results are equal.

    A contender that raises gets a row with its error.

    Args:
        bench: device and rows.
        block: block with its weights, on the CPU in fp32; its constants are perturbed.
        dtype: name of the dtype of map and weights.
        shape: (N, C, H, W).
        contenders: ours first: results are compared with those of the first.
        measures: 'forward', without gradients; 'step', forward and gradients of map and weights.
    """
    case = dict(block=type(block).__name__, dtype=dtype, shape=list(shape))
    perturb_constants(block)
    block.to(bench.device, DTYPES[dtype]).train()
    count = max(
        4, min(16, int(_CACHE_BYTES / (torch.Size(shape).numel() * DTYPES[dtype].itemsize)))
    )
    # a generator of its own: a capture that fails may leave the default one unusable
    drawn = dict(device=bench.device, generator=torch.Generator(bench.device).manual_seed(0))
    # the last one is the gradient: not constant, as batch norm removes a constant
    *maps, gradient = (
        torch.randn(shape, **drawn).to(DTYPES[dtype])
        for _ in range(2 if bench.small else count + 1)
    )
    blocks = {
        key: copy.deepcopy(block).to(memory_format=form)
        for key, form in FORMATS.items()
        if any(c.layout == key for c in contenders)
    }
    for measure in measures:
        reference = None
        for contender in contenders:
            what = f'{case["block"]} {dtype} {shape} {contender.name} {contender.layout} {measure}'
            if not bench.has_time(15 if contender.compiled else 3, what):
                continue
            row = case | dict(
                measure=measure,
                contender=contender.name,
                role=contender.role,
                layout=contender.layout,
                compiled=contender.compiled,
            )
            try:
                with contender.variant():
                    run = _Run(bench, blocks[contender.layout], contender, maps, gradient, measure)
                    found = run.results()
                    reference = found if reference is None else reference
                    row['difference'] = max(map(distance, found, reference))
                    factor = 1 if measure == 'forward' else _STEP_FACTOR
                    row['equal'] = row['difference'] <= factor * _DIFFERENCE[DTYPES[dtype]]
                    found = None
                    row |= run.times()
            except Exception as error:
                row['error'] = bench.survive(error)
            bench.row('time', **row)
            run = found = None
            bench.release()


class _Run:
    """A contender with its inputs, as calls of which each takes the next map."""

    def __init__(
        self,
        bench: Bench,
        block: nn.Module,
        contender: Contender,
        maps: list[Tensor],
        gradient: Tensor,
        measure: str,
    ) -> None:
        self.bench, self.step = bench, measure == 'step'
        self.function = contender.make(block)
        if contender.compiled:
            torch._dynamo.reset()
            backend = 'eager' if bench.small else 'inductor'  # on a CPU that needs a compiler
            self.function = torch.compile(self.function, dynamic=False, backend=backend)
        form = FORMATS[contender.layout]
        self.maps = [t.contiguous(memory_format=form).requires_grad_(self.step) for t in maps]
        self.weights = [value for value in block.parameters() if self.step]
        self.gradient = gradient.contiguous(memory_format=form)
        start = time.perf_counter()
        self.call(0)
        bench.synchronize()
        self.first = time.perf_counter() - start

    def call(self, number: int) -> Any:
        x = self.maps[number % len(self.maps)]
        if not self.step:
            with torch.no_grad():
                return self.function(x)
        values = [x, *self.weights]
        return torch.autograd.grad(self.function(x), values, self.gradient, allow_unused=True)

    def results(self) -> list[Tensor]:
        """The output; or the gradients of the map, and of all weights as one vector."""
        if not self.step:
            return [self.call(0)]
        first, *others = self.call(0)
        weights = [t.flatten() for t in others if t is not None]
        return [first, torch.cat(weights)] if weights else [first]

    def times(self) -> dict[str, Any]:
        """Times of a call; on a GPU also without launches, number of launches, and peak bytes."""
        row = dict(first_s=round(self.first, 3), call_ms=time_calls(self.bench, self.call))
        if self.bench.small:
            return row
        try:
            row['graph_ms'] = time_graph(self.bench, self.call, len(self.maps))
        except RuntimeError as error:
            if type(error).__name__ != 'OutOfMemoryError' and 'captur' not in str(error):
                raise
            row['graph_error'] = str(error).partition('\n')[0]
        self.bench.release()
        row['peak_bytes'] = peak_bytes(self.bench, self.call)
        return row | launches(self.bench, self.call)
