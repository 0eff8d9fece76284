"""Compare a case with its baselines: equality first, then time, memory and lower bound."""

import copy
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.errors import UsageError
from mmattn.torch_compat import OutOfMemoryError

from .baselines import Baseline
from .cases import MEASURES, Case, Size
from .roofline import lower_bound
from .timing import (
    CPU,
    BaselineUnsupported,
    ResultsDiffer,
    memory_limit,
    peak_bytes,
    release_memory,
    saved_bytes,
    time_interleaved,
)

MAX_SECONDS = 20  # for all rounds of one measure of one case
CURVE = ((16, 16), (32, 32), (48, 48), (64, 64), (97, 97), (128, 128), (128, 256))  # H and W
MAX_POINT_SECONDS = 20  # a curve ends at a point that takes longer
_EQUALITY_SIZE = (15, 17)  # H and W at which equality is checked in fp64
_WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float64,
}
# relative to the largest value; in half precision relative to the root mean square
_TOLERANCE = {
    torch.float16: 10 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 10 * torch.finfo(torch.bfloat16).eps,
    torch.float32: 1e-5,
    torch.float64: 1e-9,
}
# how much larger our rounding error may be than the baseline's: of outputs, of gradients;
# gradients get a looser bound, as rounding flips a few ReLUs near zero
_MAX_ERROR_RATIO = 2, 10

Log = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """One case against one baseline. A figure that was not measured is None.

    Attributes:
        name: name of the case.
        size: (N, C, H, W).
        baseline: label of the baseline.
        ours, theirs: measure -> figure. `forward` without gradients, and `step`, forward and
            backward in training, are the shortest times in ms; `saved` is the bytes saved for
            backward and `peak` the peak of a step, both without input and weights.
        lower_bound: lower bound of the forward pass in ms.
        rounds: number of rounds of `forward` and of `step`.
        targets: lowest ratio of theirs to ours; for `lower_bound`, highest ratio of ours to it.
        unsupported: measure -> why the baseline has no figure.
    """

    name: str
    size: Size
    baseline: str
    ours: dict[str, float | None]
    theirs: dict[str, float | None]
    lower_bound: float | None
    rounds: dict[str, int]
    targets: dict[str, float]
    unsupported: dict[str, str]

    def ratio(self, measure: str) -> float | None:
        """The ratio that a target is for."""
        if measure == 'lower_bound':
            numerator, denominator = self.ours['forward'], self.lower_bound
        else:
            numerator, denominator = self.theirs[measure], self.ours[measure]
        return numerator / denominator if numerator and denominator else None

    def met(self, measure: str) -> bool | None:
        ratio, target = self.ratio(measure), self.targets[measure]
        return ratio and (ratio <= target if measure == 'lower_bound' else ratio >= target)


@dataclass
class Curve:
    """Time of a step in ms and bytes saved for backward by number of pixels, ours and a baseline's.

    Attributes:
        name: name of the case.
        baseline: label of the baseline.
        size: batch and channels.
        ours, theirs: measure -> pixels -> figure.
        refused: measure -> (pixels, why the baseline has no figure from there on).
    """

    name: str
    baseline: str
    size: tuple[int, int]
    ours: dict[str, dict[int, float]] = field(default_factory=lambda: dict(step={}, saved={}))
    theirs: dict[str, dict[int, float]] = field(default_factory=lambda: dict(step={}, saved={}))
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)


class _Contenders:
    """Our block and its baselines with the same weights and inputs.

    Attributes:
        baselines: the contenders: None for our block, then its baselines.
        unsupported: (baseline, measure) -> why it has no figure.
    """

    def __init__(
        self,
        case: Case,
        size: Size,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        training: bool = True,
    ) -> None:
        torch.manual_seed(0)
        self.device, self.dtype = device, dtype
        self.ours = case.build(size).to(device, dtype).train(training)
        shapes = case.shapes(self.ours, size)
        self.inputs = [torch.randn(shape).to(device, dtype) for shape in shapes]
        self.unsupported: dict[tuple[Baseline, str], str] = {}
        self._add_baselines(case.baselines)

    def _add_baselines(self, baselines: list[Baseline]) -> None:
        """Build the baselines with our weights."""
        self.baselines = [None, *baselines]
        self.runs = {b: b.make(self.ours) if b else self.ours for b in self.baselines}
        modules = [run for run in self.runs.values() if isinstance(run, nn.Module)]
        self.weights = [value for module in modules for value in module.parameters()]

    def shift_inputs(self) -> None:
        """Give each channel a mean; without one the hidden units of gates may all be zero."""
        self.inputs = [
            t + torch.randn(t.shape[1], *(1 for _ in t.shape[2:])).to(t) for t in self.inputs
        ]

    @functools.cached_property
    def gradient(self) -> Tensor:
        """Gradient of the output: dense, and not constant, as batch norm removes a constant."""
        return torch.randn_like(self._forward(self.ours)[0])

    def task(self, baseline: Baseline | None, measure: str) -> Callable[[], Any]:
        """A measure as a function; raises `BaselineUnsupported` if the baseline cannot run it."""
        run = self.runs[baseline]
        if measure in ('step', 'peak'):
            _ = self.gradient  # computed now, outside of the timing
            f = functools.partial(self._step, run, [t.clone() for t in self.inputs])
        else:
            f = functools.partial(self._forward, run)
        if measure == 'saved':
            f = functools.partial(saved_bytes, run, self.inputs, self.weights)
        elif measure == 'peak':
            f = functools.partial(peak_bytes, f, self.device)
        if baseline is None:
            return f
        reason = self.refusal(baseline, measure)

        def attempt() -> Any:
            try:
                if reason:
                    raise BaselineUnsupported(reason)
                return f()
            except RuntimeError as error:
                half = self.dtype.itemsize == 2  # some operations mix dtypes or lack this one
                if not (half or isinstance(error, BaselineUnsupported | OutOfMemoryError)):
                    raise
                self.unsupported[baseline, measure] = str(error).partition('\n')[0]
                raise BaselineUnsupported from error

        return attempt

    def refusal(self, baseline: Baseline, measure: str) -> str:
        """Why a baseline is not tried, or an empty string."""
        if not baseline.pair_values:
            return ''
        passes = 2 if measure in ('step', 'peak') else 1
        values = passes * baseline.pair_values(self.ours, self.inputs[0])
        needed = values * self.dtype.itemsize
        return f'needs {needed / 1e9:.1f} GB' if needed > memory_limit(self.device) else ''

    @torch.no_grad()
    def _forward(self, run: Callable) -> list[Tensor]:
        return [run(*self.inputs)]

    def _step(self, run: Callable, x: list[Tensor]) -> list[Tensor]:
        y = run(*(t.requires_grad_() for t in x))
        y.backward(self.gradient)
        results = [y.detach(), *(t.grad for t in x)]
        for t in (*x, *self.weights):
            t.grad = None
        return results

    def check(self, name: str) -> None:
        """Raise `ResultsDiffer` if outputs, without and with gradients, or input gradients differ.

        Differences above `_TOLERANCE` are accepted as rounding if the results are equal in a wider
        dtype at this size, and our error against those is at most `_MAX_ERROR_RATIO` times the
        baseline's.
        """
        ours, wide = self._results(None), None
        for baseline in self.baselines[1:]:
            for i, theirs in enumerate(self._results(baseline)):
                difference = self._difference(ours[i], theirs)
                if difference <= _TOLERANCE[self.dtype]:
                    continue
                if self.dtype in _WIDER:
                    if wide is None:
                        wide = self._in_wider_dtype()
                        wide.check(name)
                        reference = wide._results(None)
                    checked = (baseline, 'step') not in wide.unsupported
                    errors = [_relative_rms(t, reference[i]) for t in (ours[i], theirs)]
                    if checked and errors[0] <= _MAX_ERROR_RATIO[i > 1] * errors[1]:
                        continue
                raise ResultsDiffer(
                    f'{name} differs from its baseline ({baseline.label}) by {difference:.1e} of '
                    f'the largest value, {str(self.dtype)[6:]} on {self.device}.'
                )

    def _difference(self, a: Tensor, b: Tensor) -> float:
        """Relative difference, as `_TOLERANCE` is for."""
        if self.dtype.itemsize == 2:
            return _relative_rms(a, b)
        return ((a - b).abs().max() / b.abs().max()).item()

    def _in_wider_dtype(self) -> '_Contenders':
        """The same weights and inputs in a wider dtype."""
        wide, dtype = copy.copy(self), _WIDER[self.dtype]
        wide.dtype, wide.unsupported = dtype, {}
        wide.ours, wide.gradient = copy.deepcopy(self.ours).to(dtype), self.gradient.to(dtype)
        wide.inputs = [t.to(dtype) for t in self.inputs]
        wide._add_baselines(self.baselines[1:])
        return wide

    def _results(self, baseline: Baseline | None) -> list[Tensor]:
        results = []
        try:
            for measure in 'forward', 'step':
                results += self.task(baseline, measure)()
        except BaselineUnsupported:
            pass
        return results


def _relative_rms(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference, relative to that of b."""
    a, b = a.double(), b.double()
    return ((a - b).norm() / b.norm()).item()


def compare_case(
    case: Case,
    size: Size | None = None,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    rounds: int = 7,
    machine: dict[str, Any] | None = None,
    log: Log = lambda text: None,
) -> list[Comparison]:
    """Measure a case against each of its baselines.

    Args:
        case: case to measure, see `list_cases`.
        size: (N, C, H, W); None for the size of the case.
        device: device to run on.
        dtype: dtype of inputs and weights.
        rounds: how often our block and the baselines are timed, alternating; fewer if all would
            take more than 20 s.
        machine: figures of `describe_machine`, for the lower bound; None for no bound.
        log: called with a line before each measurement.

    Raises:
        UsageError: the size does not fit the block.
        ResultsDiffer: a baseline differs in fp64 on the CPU at a small size by more than 1e-9 of
            the largest value, or in this dtype on this device at this size by more than
            `_TOLERANCE`, see `_Contenders.check`.
    """
    run_size = size or case.size
    try:
        if case.equivalent and not case.needs_compiled_ops:
            log(f'{case.name}: equality in fp64')
            for training in True, False:
                small_size = (*run_size[:2], *_EQUALITY_SIZE)
                small = _Contenders(case, small_size, CPU, torch.float64, training)
                small.shift_inputs()
                small.check(case.name)
        contenders = _Contenders(case, run_size, device, dtype)
        if case.equivalent and ('forward' in case.measures or 'step' in case.measures):
            log(f'{case.name}: equality at {format_size(run_size)}')
            contenders.check(case.name)
    except ValueError as error:
        if size is None:
            raise
        raise UsageError(f'--size {format_size(size)} does not fit: {error}.') from error
    figures = {baseline: dict.fromkeys(MEASURES) for baseline in contenders.baselines}
    counts = {}
    for measure in case.measures:
        log(f'{case.name}: {measure} at {format_size(run_size)}')
        tasks = [contenders.task(baseline, measure) for baseline in contenders.baselines]
        if measure in ('forward', 'step'):
            values, counts[measure] = time_interleaved(
                tasks, rounds, device, MAX_SECONDS, case.min_rounds
            )
        else:
            values = [_call(task)[0] for task in tasks]
        for baseline, value in zip(contenders.baselines, values, strict=True):
            figures[baseline][measure] = value
    bound_ms = None
    if machine and 'forward' in case.measures:
        bound = lower_bound(contenders.ours, case.shapes(contenders.ours, run_size))
        bound_ms = bound.ms(dtype.itemsize, machine['sgemm_gflops'], machine['copy_gb_per_s'])
    has_targets = run_size == case.size and device == CPU and dtype == torch.float32
    return [
        Comparison(
            name=case.name,
            size=run_size,
            baseline=baseline.label,
            ours=figures[None],
            theirs=figures[baseline],
            lower_bound=bound_ms,
            rounds=counts,
            targets=dict(case.targets) if has_targets and not index else {},
            unsupported={
                measure: reason
                for (owner, measure), reason in contenders.unsupported.items()
                if owner == baseline
            },
        )
        for index, baseline in enumerate(contenders.baselines[1:])
    ]


def _call(task: Callable[[], Any]) -> tuple[Any, float]:
    """What a task returns, None if the baseline cannot run it; and how long it took in ms."""
    start = time.perf_counter()
    try:
        value = task()
    except BaselineUnsupported:
        value = None
    return value, 1000 * (time.perf_counter() - start)


def measure_curve(
    case: Case,
    size: Size,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    log: Log = lambda text: None,
) -> Curve:
    """Measure a case from 16x16 to 128x256 pixels, until a point takes longer than 20 s.

    Raises:
        ResultsDiffer: as in `compare_case`; checked at the smallest size.
    """
    baseline = case.baselines[0]
    curve, ended = Curve(case.name, baseline.label, size[:2]), set()
    for height, width in CURVE:
        run_size, pixels = (*size[:2], height, width), height * width
        contenders = _Contenders(case, run_size, device, dtype)
        if (height, width) == CURVE[0]:
            contenders.check(case.name)
        for measure in 'step', 'saved':
            release_memory()
            log(f'{case.name}: {measure} at {format_size(run_size)}')
            refusal = contenders.refusal(baseline, measure)
            if refusal:  # recorded even if the curve has ended before
                curve.refused.setdefault(measure, (pixels, refusal))
            ended |= {(baseline, measure) for measure in curve.refused}
            sides = [owner for owner in (None, baseline) if (owner, measure) not in ended]
            tasks = [contenders.task(owner, measure) for owner in sides]
            if measure == 'step':
                values = times = time_interleaved(tasks, 5, device, seconds=6, min_rounds=0)[0]
            else:
                values, times = zip(*map(_call, tasks)) if tasks else ((), ())
            for owner, value, ms in zip(sides, values, times, strict=True):
                if value is None:
                    curve.refused[measure] = pixels, contenders.unsupported[owner, measure]
                    continue
                (curve.theirs if owner else curve.ours)[measure][pixels] = value
                if ms > 1000 * MAX_POINT_SECONDS:
                    ended.add((owner, measure))
    return curve


def format_size(size: Size) -> str:
    return 'x'.join(map(str, size))
