"""The contenders of a case: our block and its baselines, in each layout, eager and compiled."""

import copy
import functools
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.torch_compat import OutOfMemoryError

from .baselines import Baseline
from .cases import EAGER, NCHW, Case, Size
from .timing import (
    CPU,
    BaselineUnsupported,
    ResultsDiffer,
    memory_limit,
    peak_bytes,
    saved_bytes,
)

EQUALITY_SIZE = (15, 17)  # H and W at which equality is checked in fp64
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
# gradients get a looser bound, as rounding flips a few ReLUs near zero, of one branch or another
_MAX_ERROR_RATIO = 2, 10
_FORMATS = dict(NCHW=torch.contiguous_format, NHWC=torch.channels_last)


@dataclass(frozen=True)
class Contender:
    """One implementation in one form.

    Attributes:
        baseline: the baseline; None for our block.
        layout: one of `LAYOUTS`.
        mode: one of `MODES`.
    """

    baseline: Baseline | None
    layout: str
    mode: str

    def __str__(self) -> str:
        return f'{self.baseline.name if self.baseline else "ours"}, {self.layout}, {self.mode}'


class Contenders:
    """Our block and its baselines with the same weights and inputs.

    Attributes:
        all: the contenders; the first is our block, eager, in the first layout.
        unsupported: (contender, measure) -> why it has no figure.
        compile_seconds: (contender, measure) -> duration of the first call.
    """

    def __init__(
        self,
        case: Case,
        size: Size,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        training: bool = True,
        layouts: Iterable[str] = (NCHW,),
        modes: Iterable[str] = (EAGER,),
    ) -> None:
        torch.manual_seed(0)
        self.device, self.dtype = device, dtype
        self.unsupported: dict[tuple[Contender, str], str] = {}
        self.compile_seconds: dict[tuple[Contender, str], float] = {}
        block = case.build(size).to(device, dtype).train(training)
        self.shapes = case.shapes(block, size)
        self.inputs = [torch.randn(shape).to(device, dtype) for shape in self.shapes]
        owners = [None, *case.baselines]
        self.all = [Contender(b, la, mode) for la in layouts for b in owners for mode in modes]
        self.blocks = {layout: _in_layout(copy.deepcopy(block), layout) for layout in layouts}
        self._build_runs()

    def _build_runs(self) -> None:
        """Build the baselines with our weights, and compile what is to be compiled."""
        built, self.runs = {}, {}
        for contender in self.all:
            baseline, layout = contender.baseline, contender.layout
            if (baseline, layout) not in built:
                block = self.blocks[layout]
                run = baseline.make(block) if baseline else block
                built[baseline, layout] = _in_layout(run, layout)
            run = built[baseline, layout]
            if contender.mode != EAGER:
                run = torch.compile(run, dynamic=False)
            self.runs[contender] = run

    @property
    def ours(self) -> nn.Module:
        return self.blocks[self.all[0].layout]

    @property
    def reference(self) -> Contender:
        """The contender that the others are compared with."""
        return self.all[0]

    def shift_inputs(self) -> None:
        """Give each channel a mean; without one the hidden units of gates may all be zero."""
        self.inputs = [
            t + torch.randn(t.shape[1], *(1 for _ in t.shape[2:])).to(t) for t in self.inputs
        ]

    @functools.cached_property
    def gradient(self) -> Tensor:
        """Gradient of the output: dense, and not constant, as batch norm removes a constant."""
        return torch.randn_like(self._forward(self.ours, self.inputs))

    def parameters(self, contender: Contender) -> dict[str, nn.Parameter]:
        """Parameters by the name that they have in our block, paired by their values."""
        block, run = self.blocks[contender.layout], self.runs[contender]
        ours = dict(block.named_parameters())
        if contender.baseline is None or not isinstance(run, nn.Module):
            return ours  # other callables use the parameters of our block
        theirs, paired = list(run.parameters()), {}
        for name, value in ours.items():
            same = (p for p in theirs if p.numel() == value.numel())
            equal = [p for p in same if torch.equal(p.flatten(), value.flatten())]
            if equal:
                paired[name] = equal[0]
                theirs = [p for p in theirs if p is not equal[0]]
        return paired

    def task(
        self, contender: Contender, measure: str, f: Callable[[], Any] | None = None
    ) -> Callable[[], Any]:
        """A measure as a function; raises `BaselineUnsupported` if the contender cannot run it.

        Args:
            contender: who runs it.
            measure: one of `MEASURES`.
            f: what is called for it; None for what the measure says.
        """
        f = f or self._function(contender, measure)
        reason = self.refusal(contender, measure)

        def attempt() -> Any:
            try:
                if reason or (contender, measure) in self.unsupported:
                    raise BaselineUnsupported(reason or self.unsupported[contender, measure])
                return f()
            except RuntimeError as error:
                if not self._is_a_limit(contender, error):
                    raise
                self.unsupported[contender, measure] = str(error).strip().partition('\n')[0]
                raise BaselineUnsupported from error

        return attempt

    def _function(self, contender: Contender, measure: str) -> Callable[[], Any]:
        run, inputs = self.runs[contender], self._inputs_of(contender)
        if measure == 'forward':
            # on a GPU each call has other inputs: its cache would hold those of the call before
            others = [] if self.device == CPU else [[t.clone() for t in inputs] for _ in range(3)]
            turns = itertools.cycle([inputs, *others])
            return lambda: self._forward(run, next(turns))
        if measure == 'saved':
            return functools.partial(saved_bytes, run, inputs, self._weights(contender))
        step = self._step(contender)
        return step if measure == 'step' else functools.partial(peak_bytes, step, self.device)

    def _is_a_limit(self, contender: Contender, error: RuntimeError) -> bool:
        """Whether an error is one of the contender rather than of ours."""
        if isinstance(error, BaselineUnsupported):
            return True
        half = self.dtype.itemsize == 2  # some operations mix dtypes or lack this one
        of_baseline = contender.baseline and (half or isinstance(error, OutOfMemoryError))
        return bool(of_baseline) or contender.mode != EAGER

    def refusal(self, contender: Contender, measure: str) -> str:
        """Why a baseline is not tried, or an empty string."""
        baseline = contender.baseline
        if not (baseline and baseline.pair_values):
            return ''
        passes = 2 if measure in ('step', 'peak') else 1
        values = passes * baseline.pair_values(self.ours, self.inputs[0])
        needed = values * self.dtype.itemsize
        return f'needs {needed / 1e9:.1f} GB' if needed > memory_limit(self.device) else ''

    def _inputs_of(self, contender: Contender) -> list[Tensor]:
        """Copies: one that has just been read for another contender may still be in the cache."""
        return [_in_layout(t.clone(), contender.layout) for t in self.inputs]

    @torch.no_grad()
    def _forward(self, run: Callable, inputs: list[Tensor]) -> Tensor:
        return run(*inputs)

    def _step(self, contender: Contender) -> 'Step':
        inputs = [t.requires_grad_() for t in self._inputs_of(contender)]
        gradient = _in_layout(self.gradient.clone(), contender.layout)
        return Step(self.runs[contender], inputs, gradient, self._weights(contender))

    def _weights(self, contender: Contender) -> list[nn.Parameter]:
        run = self.runs[contender]
        theirs = run.parameters() if isinstance(run, nn.Module) else ()
        return [*self.blocks[contender.layout].parameters(), *theirs]

    def check(self, name: str) -> None:
        """Raise `ResultsDiffer` if outputs, without and with gradients, or gradients differ.

        Gradients are those of the inputs and of the parameters. Differences above `_TOLERANCE` are
        accepted as rounding if the results are equal in a wider dtype at this size, and our error
        against those is at most `_MAX_ERROR_RATIO` times that of the contender; or that of both is
        at most so many times that of an eager baseline, as one contender's rounding may decide a
        maximum right that all others decide wrong. For a gradient the contender's error is the
        largest of its gradients, as a ReLU that one flips in one branch, another flips elsewhere.
        """
        ours, wide = self.results(self.reference), None
        for contender in self.all[1:]:
            if contender.baseline and not contender.baseline.comparable:
                continue
            theirs = self.results(contender)
            scales = _scales(theirs)
            for what in theirs.keys() & ours.keys():
                difference = self._difference(ours[what], theirs[what], what, scales[what])
                if difference <= _TOLERANCE[self.dtype]:
                    continue
                if self.dtype in _WIDER:
                    if wide is None:
                        wide = self._in_wider_dtype()
                        wide.check(name)
                        exact = wide.results(wide.reference)
                    checked = (wide.eager(contender), 'step') not in wide.unsupported
                    errors = [
                        _error(t[what], exact[what], what, scales[what]) for t in (ours, theirs)
                    ]
                    ratio = _MAX_ERROR_RATIO['gradient' in what]
                    if checked and (
                        errors[0] <= ratio * _largest_error(theirs, exact, what)
                        or max(errors) <= ratio * self._error_of_baselines(what, exact)
                    ):
                        continue
                raise ResultsDiffer(
                    f'{name} differs from its baseline ({contender}) by {difference:.1e} of '
                    f'the largest value, {what}, {str(self.dtype)[6:]} on {self.device}.'
                )

    def _error_of_baselines(self, what: str, exact: dict[str, Tensor]) -> float:
        """The largest error of an eager baseline in the first layout; 0 without any."""
        errors = [0.0]
        for contender in self.all:
            baseline = contender.baseline
            if baseline and baseline.comparable and contender == self.eager(contender):
                theirs = self.results(contender)
                if what in theirs:
                    errors.append(_largest_error(theirs, exact, what))
        return max(errors)

    def _difference(self, a: Tensor, b: Tensor, what: str, scale: float) -> float:
        """Relative difference, as `_TOLERANCE` is for."""
        if self.dtype.itemsize == 2:
            return _error(a, b, what, scale)
        return ((a - b).abs().max() / scale).item() if scale else float((a != b).any())

    def _first_call(
        self, contender: Contender, measure: str, f: Callable[[], Tensor] | None = None
    ) -> Tensor:
        """A task; how long it takes is kept if it compiles."""
        start = time.perf_counter()
        result = self.task(contender, measure, f)()
        if contender.mode != EAGER:
            seconds = time.perf_counter() - start
            self.compile_seconds.setdefault((contender, measure), seconds)
        return result

    def eager(self, contender: Contender) -> Contender:
        """The same implementation, eager, in the first layout."""
        return Contender(contender.baseline, self.reference.layout, EAGER)

    def _in_wider_dtype(self) -> 'Contenders':
        """The same weights and inputs in a wider dtype, eager, in the first layout alone."""
        wide, dtype = copy.copy(self), _WIDER[self.dtype]
        wide.dtype, wide.unsupported, layout = dtype, {}, self.reference.layout
        wide.blocks = {layout: copy.deepcopy(self.ours).to(dtype)}
        wide.gradient, wide.inputs = self.gradient.to(dtype), [t.to(dtype) for t in self.inputs]
        wide.all = [c for c in self.all if c.layout == layout and c.mode == EAGER]
        wide._build_runs()
        return wide

    def results(self, contender: Contender) -> dict[str, Tensor]:
        """Outputs and gradients by what they are; without those that it cannot compute."""
        results, step = {}, self._step(contender)
        try:
            results['output'] = self._first_call(contender, 'forward')
            results['output in training'] = self._first_call(contender, 'step', step.keep)
            for i, t in enumerate(step.inputs):
                results[f'gradient of input {i}'] = t.grad
            for name, value in self.parameters(contender).items():
                if value.grad is not None:
                    results[f'gradient of {name}'] = value.grad.flatten()
        except BaselineUnsupported:
            pass
        step.release()
        return results

    def unpaired(self) -> dict[str, list[str]]:
        """Baseline -> parameters of our block whose gradients are not compared with it."""
        eager = [c for c in self.all if c.baseline and c.baseline.comparable and c == self.eager(c)]
        names = [name for name, value in self.ours.named_parameters() if value.requires_grad]
        missing = {c.baseline.name: set(names) - self.parameters(c).keys() for c in eager}
        return {name: sorted(values) for name, values in missing.items() if values}


def _largest_error(results: dict[str, Tensor], exact: dict[str, Tensor], what: str) -> float:
    """The error of an output; for a gradient the largest of all gradients."""
    names = [what]
    if 'gradient' in what:
        names = [name for name in results.keys() & exact.keys() if 'gradient' in name]
    scales = _scales(results)
    return max(_error(results[name], exact[name], name, scales[name]) for name in names)


class Step:
    """Forward and backward with a given gradient of the output."""

    def __init__(
        self,
        run: Callable[..., Tensor],
        inputs: list[Tensor],
        gradient: Tensor,
        weights: list[nn.Parameter],
    ) -> None:
        self.run, self.inputs, self.gradient, self.weights = run, inputs, gradient, weights

    def __call__(self) -> None:
        self.keep()
        self.release()

    def keep(self) -> Tensor:
        """The output; the gradients stay."""
        y = self.run(*self.inputs)
        y.backward(self.gradient)
        return y.detach()

    def release(self) -> None:
        """Free the gradients."""
        for t in (*self.inputs, *self.weights):
            t.grad = None


def _scales(results: dict[str, Tensor]) -> dict[str, float]:
    """The largest value of each result; of parameters, that of all gradients.

    The gradient of some parameters is 0 by definition, such as that of the bias of keys.
    """
    scales = {what: t.abs().max().item() if t.numel() else 0.0 for what, t in results.items()}
    of_weights = [what for what in results if _is_of_weights(what)]
    largest = max((scales[what] for what in of_weights), default=0.0)
    return scales | dict.fromkeys(of_weights, largest)


def _is_of_weights(what: str) -> bool:
    return what.startswith('gradient of ') and not what.startswith('gradient of input ')


def _error(a: Tensor, b: Tensor, what: str, scale: float) -> float:
    """Root mean square of the difference, relative to that of b; of parameters, to the scale."""
    a, b = a.double(), b.double()
    size = scale * a.numel() ** 0.5 if _is_of_weights(what) else b.norm()
    return ((a - b).norm() / size).item()


def _in_layout(x: Any, layout: str) -> Any:
    """A tensor or the parameters of a module in a layout; anything else as it is."""
    if isinstance(x, nn.Module):
        return x.to(memory_format=_FORMATS[layout])
    if isinstance(x, Tensor) and x.dim() == 4:
        return x.contiguous(memory_format=_FORMATS[layout])
    return x
