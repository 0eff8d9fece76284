"""Compare a case with its baselines: equality first, then time and memory."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from mmattn.errors import UsageError

from .cases import EAGER, LAYOUTS, MEASURES, MODES, NCHW, Case, Size, Target
from .contenders import EQUALITY_SIZE, Contender, Contenders
from .machine import malloc_setting
from .roofline import estimate
from .timing import CPU, BaselineUnsupported, release_memory, time_interleaved

ROUNDS = 25  # at most
MAX_SECONDS = 15  # for all rounds of one measure of one case, unless it has a target
QUICK_SECONDS = 5  # in a setting without targets
TARGET_ROUNDS = 5  # of a case with targets, however long they take
CURVE = ((16, 16), (32, 32), (48, 48), (64, 64), (97, 97), (128, 128), (128, 256))  # H and W
MAX_POINT_SECONDS = 20  # a curve ends at a point that takes longer

Log = Callable[[str], None]


@dataclass
class Cell:
    """Figures of one implementation in one layout and mode.

    Attributes:
        owner: 'ours', or the baseline as `Baseline.name` has it.
        layout, mode: of `LAYOUTS` and `MODES`.
        comparable: whether it does the same work, see `Baseline`.
        forward, step: time of each round in ms, without gradients, and of forward and backward in
            training; empty if not measured.
        saved, peak: bytes saved for backward and the peak of a step, without input and weights;
            None if not measured.
        compile_seconds: measure -> duration of the first call; empty unless compiled.
        unsupported: measure -> why it has no figure.
    """

    owner: str
    layout: str = NCHW
    mode: str = EAGER
    comparable: bool = True
    forward: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    saved: int | None = None
    peak: int | None = None
    compile_seconds: dict[str, float] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)

    def figure(self, measure: str) -> float | None:
        """The median of the times in ms, or bytes."""
        value = getattr(self, measure)
        if isinstance(value, list):
            return statistics.median(value) if value else None
        return value


@dataclass
class Row:
    """One case under one setting.

    Attributes:
        name: name of the case.
        size: (N, C, H, W).
        threads: number of threads of torch.
        malloc: 'tuned' or 'default', see `malloc_setting`.
        estimate: of the forward pass in ms, see `roofline`; None without a machine.
        cells: its figures.
        targets: the targets that hold for this size and setting.
        unpaired: baseline -> parameters whose gradients were not compared.
    """

    name: str
    size: Size
    threads: int
    malloc: str
    estimate: float | None
    cells: list[Cell]
    targets: list[Target]
    unpaired: dict[str, list[str]]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> 'Row':
        cells = [Cell(**cell) for cell in content['cells']]
        targets = [Target(**target) for target in content['targets']]
        size = tuple(content['size'])
        return cls(**content | dict(cells=cells, targets=targets, size=size))

    @property
    def key(self) -> tuple:
        return self.name, self.size, self.threads, self.malloc

    @property
    def layouts(self) -> list[str]:
        return [la for la in LAYOUTS if any(cell.layout == la for cell in self.cells)]

    def best(
        self, ours: bool, measure: str, layout: str | None = None, mode: str | None = None
    ) -> Cell | None:
        """The cell with the least figure of our block or of the comparable baselines."""
        return min(
            (c for c in self._side(ours, layout, mode) if c.figure(measure) is not None),
            key=lambda cell: cell.figure(measure),
            default=None,
        )

    def ratio(
        self, measure: str, layout: str | None = None, mode: str | None = None
    ) -> float | None:
        """The best baseline over the best of ours; None if one has no figure or ours is 0.

        Of times it is the median of the ratios of single rounds, in which both are measured within
        a second or so, as the speed of a machine changes.
        """
        rounds = self._rounds(measure, layout, mode)
        if rounds:
            return statistics.median(rounds)
        sides = self.best(False, measure, layout, mode), self.best(True, measure, layout)
        theirs, ours = (side and side.figure(measure) for side in sides)
        return theirs / ours if theirs and ours else None

    def spread(
        self, measure: str, layout: str | None = None, mode: str | None = None
    ) -> tuple[float, float] | None:
        """Quartiles of the ratios of single rounds, of the same two cells."""
        ratios = self._rounds(measure, layout, mode)
        if not ratios:
            return None
        if len(ratios) == 1:
            return ratios[0], ratios[0]
        first, _, third = statistics.quantiles(ratios, n=4, method='inclusive')
        return first, third

    def _rounds(self, measure: str, layout: str | None, mode: str | None) -> list[float]:
        """The ratio of each round; empty unless both have times."""
        sides = self.best(False, measure, layout, mode), self.best(True, measure, layout)
        if not all(sides) or measure not in ('forward', 'step'):
            return []
        pairs = zip(*(getattr(side, measure) for side in sides), strict=True)
        return [theirs / ours for theirs, ours in pairs]

    def met(self, target: Target) -> bool | None:
        """Whether a target is met; None if it was not measured."""
        ratio = self.ratio(target.measure, target.layout, target.mode)
        if ratio is None:
            return None
        return ratio >= target.ratio

    def _side(self, ours: bool, layout: str | None, mode: str | None) -> Iterator[Cell]:
        for cell in self.cells:
            fits = layout in (None, cell.layout) and mode in (None, cell.mode)
            if fits and cell.comparable and (cell.owner == 'ours') == ours:
                yield cell


@dataclass
class Curve:
    """Time of a step in ms and bytes saved for backward by number of pixels, ours and a baseline's.

    Attributes:
        name: name of the case.
        baseline: name of the baseline.
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


def compare_case(
    case: Case,
    size: Size | None = None,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    rounds: int = ROUNDS,
    machine: dict[str, Any] | None = None,
    log: Log = lambda text: None,
    *,
    layouts: Iterable[str] = LAYOUTS,
    modes: Iterable[str] = MODES,
    measures: Iterable[str] = MEASURES,
    has_targets: bool = True,
) -> Row:
    """Measure a case against its baselines.

    Args:
        case: case to measure, see `list_cases`.
        size: (N, C, H, W); None for the size of the case.
        device: device to run on.
        dtype: dtype of inputs and weights.
        rounds: how often our block and the baselines are timed, alternating; fewer if all would
            take more than `MAX_SECONDS`, without targets `QUICK_SECONDS`, but at least
            `TARGET_ROUNDS` if the case has targets.
        machine: figures of `describe_machine`, for the estimate; None for none.
        log: called with a line before each measurement.
        layouts, modes, measures: those to measure, of the ones that the case has.
        has_targets: whether this is a setting that targets are for.

    Raises:
        UsageError: the size does not fit the block.
        ResultsDiffer: a baseline differs in fp64 on the CPU at a small size by more than 1e-9 of
            the largest value, or in this dtype on this device at this size by more than rounding,
            see `Contenders.check`.
    """
    run_size = size or case.size
    layouts = [layout for layout in case.layouts if layout in layouts]
    modes = [mode for mode in case.modes if mode in modes]
    measures = [measure for measure in case.measures if measure in measures]
    unpaired = {}
    try:
        if case.equivalent and not case.needs_compiled_ops:
            log(f'{case.name}: equality in fp64')
            for training in True, False:
                small_size = (*run_size[:2], *EQUALITY_SIZE)
                small = Contenders(case, small_size, CPU, torch.float64, training)
                small.shift_inputs()
                small.check(case.name)
                unpaired = small.unpaired()
        contenders = Contenders(case, run_size, device, dtype, layouts=layouts, modes=modes)
        if case.equivalent and ('forward' in measures or 'step' in measures):
            compiled = ', compilation' if len(modes) > 1 else ''
            log(f'{case.name}: equality at {format_size(run_size)}{compiled}')
            contenders.check(case.name)
    except ValueError as error:
        if size is None:
            raise
        raise UsageError(f'--size {format_size(size)} does not fit: {error}.') from error
    with_targets = has_targets and run_size == case.size and device == CPU
    targets = case.targets if with_targets and dtype == torch.float32 else []
    cells = {contender: _cell(contender) for contender in contenders.all}
    for measure in measures:
        log(f'{case.name}: {measure} at {format_size(run_size)}')
        tasks = [contenders.task(contender, measure) for contender in contenders.all]
        if measure in ('forward', 'step'):
            least = TARGET_ROUNDS if any(t.measure == measure for t in targets) else 2
            seconds = MAX_SECONDS if has_targets else QUICK_SECONDS
            values = time_interleaved(tasks, rounds, device, seconds, min(least, rounds))
        else:
            values = [_call(task)[0] for task in tasks]
        for cell, value in zip(cells.values(), values, strict=True):
            if isinstance(value, list):
                value = [round(ms, 4) for ms in value]
            setattr(cell, measure, value)
    for (contender, measure), seconds in contenders.compile_seconds.items():
        cells[contender].compile_seconds[measure] = round(seconds, 1)
    for (contender, measure), reason in contenders.unsupported.items():
        cells[contender].unsupported[measure] = reason
    needed = machine and 'forward' in measures
    figure = estimate(contenders.ours, contenders.shapes) if needed else None
    return Row(
        name=case.name,
        size=run_size,
        threads=torch.get_num_threads(),
        malloc=malloc_setting(),
        estimate=figure and figure.ms(dtype.itemsize, machine),
        cells=list(cells.values()),
        targets=targets,
        unpaired=unpaired,
    )


def _cell(contender: Contender) -> Cell:
    baseline = contender.baseline
    return Cell(
        owner=baseline.name if baseline else 'ours',
        layout=contender.layout,
        mode=contender.mode,
        comparable=baseline is None or baseline.comparable,
    )


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

    Eager, contiguous, against the first baseline.

    Raises:
        ResultsDiffer: as in `compare_case`; checked at the smallest size.
    """
    baseline = case.baselines[0]
    curve, ended = Curve(case.name, baseline.name, size[:2]), set()
    for height, width in CURVE:
        run_size, pixels = (*size[:2], height, width), height * width
        contenders = Contenders(case, run_size, device, dtype)
        if (height, width) == CURVE[0]:
            contenders.check(case.name)
        for measure in 'step', 'saved':
            release_memory()
            log(f'{case.name}: {measure} at {format_size(run_size)}')
            refusal = contenders.refusal(contenders.all[1], measure)
            if refusal:  # recorded even if the curve has ended before
                curve.refused.setdefault(measure, (pixels, refusal))
            ended |= {(baseline, measure) for measure in curve.refused}
            sides = [c for c in contenders.all[:2] if (c.baseline, measure) not in ended]
            tasks = [contenders.task(contender, measure) for contender in sides]
            if measure == 'step':
                rounds = time_interleaved(tasks, 5, device, seconds=6, min_rounds=0)
                values = times = [min(round_, default=None) for round_ in rounds]
            else:
                values, times = zip(*map(_call, tasks)) if tasks else ((), ())
            for contender, value, ms in zip(sides, values, times, strict=True):
                if value is None:
                    curve.refused[measure] = pixels, contenders.unsupported[contender, measure]
                    continue
                (curve.theirs if contender.baseline else curve.ours)[measure][pixels] = value
                if ms > 1000 * MAX_POINT_SECONDS:
                    ended.add((contender.baseline, measure))
    return curve


def format_size(size: Size) -> str:
    return 'x'.join(map(str, size))
