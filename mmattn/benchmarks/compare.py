"""A case and its peers side by side: equality first, then time, memory and floor."""

import copy
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.errors import UsageError

from .baselines import Peer
from .cases import MEASURES, Case, Size
from .roofline import floor
from .timing import CPU, PeerCannot, Unequal, give_back, kept, memory_limit, peak, timed

SECONDS = 20  # of the rounds of one measure of one case
CURVE = ((16, 16), (32, 32), (48, 48), (64, 64), (97, 97), (128, 128), (128, 256))  # H and W
SLOW = 20  # seconds after which a curve ends
_EQUALITY = (15, 17)  # H and W at which equality is checked in fp64
_WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float64,
}
_TOLERANCE = {  # of the largest value; in half precision of the root mean square
    torch.float16: 10 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 10 * torch.finfo(torch.bfloat16).eps,
    torch.float32: 1e-5,
    torch.float64: 1e-9,
}  # of outputs, of gradients; in these a few ReLUs count, whose side of zero rounding decides
_LUCK = 2, 10

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One case and one peer. What was not asked, or what the peer cannot, is None.

    Attributes:
        name, size, peer: what was run, (N, C, H, W), and the origin of the peer.
        ours, theirs: `forward` without gradients and `step`, forward and backward in training, in
            ms, the least of all rounds; `kept`, bytes between forward and backward, and `peak`,
            most bytes at once in a step, both beside input and weights.
        floor: ms that the forward pass takes at least.
        rounds: of `forward` and `step`.
        targets: least ratio of theirs to ours; `floor`: greatest ratio of ours to the floor.
        cannot: measure -> why the peer has none.
    """

    name: str
    size: Size
    peer: str
    ours: dict[str, float | None]
    theirs: dict[str, float | None]
    floor: float | None
    rounds: dict[str, int]
    targets: dict[str, float]
    cannot: dict[str, str]

    def ratio(self, what: str) -> float | None:
        """What stands beside a target."""
        ours = self.ours['forward' if what == 'floor' else what]
        above, below = (ours, self.floor) if what == 'floor' else (self.theirs[what], ours)
        return above / below if above and below else None

    def met(self, what: str) -> bool | None:
        ratio, target = self.ratio(what), self.targets[what]
        return ratio and (ratio <= target if what == 'floor' else ratio >= target)


@dataclass
class Curve:
    """Time of a step in ms and bytes kept, by the number of pixels, of ours and of one peer.

    Attributes:
        size: batch and channels.
        ours, theirs: measure -> pixels -> figure.
        refused: measure -> (pixels, why the peer cannot).
    """

    name: str
    peer: str
    size: tuple[int, int]
    ours: dict[str, dict[int, float]] = field(default_factory=lambda: dict(step={}, kept={}))
    theirs: dict[str, dict[int, float]] = field(default_factory=lambda: dict(step={}, kept={}))
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)


class _Setting:
    """Ours and its peers with the same weights and the same inputs.

    Attributes:
        peers: what can be asked for: ours, as None, and the others.
        cannot: (peer, measure) -> why.
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
        self.cannot: dict[tuple[Peer, str], str] = {}
        self._place(case.peers)

    def _place(self, peers: list[Peer]) -> None:
        """Put peers beside ours."""
        self.runs = {None: self.ours} | {peer: peer.make(self.ours) for peer in peers}
        self.peers = list(self.runs)
        modules = [run for run in self.runs.values() if isinstance(run, nn.Module)]
        self.weights = [value for module in modules for value in module.parameters()]

    def shift(self) -> None:
        """Give each channel a mean, without which the hidden layers of gates may all be at 0."""
        self.inputs = [
            t + torch.randn(t.shape[1], *(1 for _ in t.shape[2:])).to(t) for t in self.inputs
        ]

    @functools.cached_property
    def gradient(self) -> Tensor:
        """Of the output: dense, and no constant, of which batch norm would leave nothing."""
        return torch.randn_like(self._forward(self.ours)[0])

    def task(self, peer: Peer | None, what: str) -> Callable[[], Any]:
        """A measure as a function; of a peer that cannot it raises `PeerCannot`."""
        run = self.runs[peer]
        if what in ('step', 'peak'):
            _ = self.gradient  # now, not when it is timed
            f = functools.partial(self._step, run, [t.clone() for t in self.inputs])
        else:
            f = functools.partial(self._forward, run)
        if what == 'kept':
            f = functools.partial(kept, run, self.inputs, self.weights)
        elif what == 'peak':
            f = functools.partial(peak, f, self.device)
        if peer is None:
            return f
        reason = self.refusal(peer, what)

        def attempt() -> Any:
            try:
                if reason:
                    raise PeerCannot(reason)
                return f()
            except RuntimeError as error:
                half = self.dtype.itemsize == 2  # operations that mix dtypes, or lack this one
                if not (half or isinstance(error, PeerCannot | torch.OutOfMemoryError)):
                    raise
                self.cannot[peer, what] = str(error).partition('\n')[0]
                raise PeerCannot from error

        return attempt

    def refusal(self, peer: Peer, what: str) -> str:
        """Why a peer is not even tried."""
        if not peer.largest:
            return ''
        values = peer.largest(self.ours, self.inputs[0]) * (2 if what in ('step', 'peak') else 1)
        needed = values * self.dtype.itemsize
        return f'needs {needed / 1e9:.1f} GB' if needed > memory_limit(self.device) else ''

    @torch.no_grad()
    def _forward(self, run: Callable) -> list[Tensor]:
        return [run(*self.inputs)]

    def _step(self, run: Callable, x: list[Tensor]) -> list[Tensor]:
        y = run(*(t.requires_grad_() for t in x))
        y.backward(self.gradient)
        found = [y.detach(), *(t.grad for t in x)]
        for t in (*x, *self.weights):
            t.grad = None
        return found

    def check(self, name: str) -> None:
        """Raise `Unequal` if outputs, without and with gradients, or input gradients differ.

        By more than `_TOLERANCE` they may differ where rounding does it: if they are equal in a
        wider dtype, at this size, and ours is at most `_LUCK` times as far from that as the peer.
        """
        ours, wide = self._results(None), None
        for peer in self.peers[1:]:
            for i, theirs in enumerate(self._results(peer)):
                far = self._far(ours[i], theirs)
                if far <= _TOLERANCE[self.dtype]:
                    continue
                if self.dtype in _WIDER:
                    if wide is None:
                        wide = self._widened()
                        wide.check(name)
                        truth = wide._results(None)
                    told = (peer, 'step') not in wide.cannot
                    errors = [_apart(t, truth[i]) for t in (ours[i], theirs)]
                    if told and errors[0] <= _LUCK[i > 1] * errors[1]:
                        continue
                raise Unequal(
                    f'{name} differs from its peer ({peer.label}) by {far:.1e} of the largest '
                    f'value, {str(self.dtype)[6:]} on {self.device}.'
                )

    def _far(self, a: Tensor, b: Tensor) -> float:
        """What stands beside `_TOLERANCE`."""
        if self.dtype.itemsize == 2:
            return _apart(a, b)
        return ((a - b).abs().max() / b.abs().max()).item()

    def _widened(self) -> '_Setting':
        """The same weights and inputs in a wider dtype."""
        wide, dtype = copy.copy(self), _WIDER[self.dtype]
        wide.dtype, wide.cannot = dtype, {}
        wide.ours, wide.gradient = copy.deepcopy(self.ours).to(dtype), self.gradient.to(dtype)
        wide.inputs = [t.to(dtype) for t in self.inputs]
        wide._place(self.peers[1:])
        return wide

    def _results(self, peer: Peer | None) -> list[Tensor]:
        found = []
        try:
            for what in 'forward', 'step':
                found += self.task(peer, what)()
        except PeerCannot:
            pass
        return found


def _apart(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference, over that of b."""
    a, b = a.double(), b.double()
    return ((a - b).norm() / b.norm()).item()


def measure(
    case: Case,
    size: Size | None = None,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    rounds: int = 7,
    speed: dict[str, Any] | None = None,
    say: Say = lambda text: None,
) -> list[Row]:
    """Measure a case; a row for each of its peers.

    Args:
        case: of `cases`.
        size: if not that of the case.
        rounds: ours and the peers in turn, as often at most; fewer where 20 s do not suffice.
        speed: of `machine`, for the floor.
        say: called with what is done next.

    Raises:
        UsageError: a size that does not fit.
        Unequal: a peer differs in fp64 on the CPU at a small size by more than 1e-9 of the largest
            value, or in this dtype on this device at this size by more than `_TOLERANCE`, see
            `_Setting.check`.
    """
    at = size or case.size
    try:
        if case.same and not case.compiled:
            say(f'{case.name}: equality in fp64')
            for training in True, False:
                small = _Setting(case, (*at[:2], *_EQUALITY), CPU, torch.float64, training)
                small.shift()
                small.check(case.name)
        setting = _Setting(case, at, device, dtype)
        if case.same and ('forward' in case.measures or 'step' in case.measures):
            say(f'{case.name}: equality at {written(at)}')
            setting.check(case.name)
    except ValueError as error:
        if size is None:
            raise
        raise UsageError(f'--size {written(size)} does not fit: {error}.') from error
    found = {peer: dict.fromkeys(MEASURES) for peer in setting.peers}
    counts = {}
    for what in case.measures:
        say(f'{case.name}: {what} at {written(at)}')
        tasks = [setting.task(peer, what) for peer in setting.peers]
        if what in ('forward', 'step'):
            values, counts[what] = timed(tasks, rounds, device, SECONDS, case.fewest)
        else:
            values = [_value(task)[0] for task in tasks]
        for peer, value in zip(setting.peers, values, strict=True):
            found[peer][what] = value
    least_ms = None
    if speed and 'forward' in case.measures:
        bound = floor(setting.ours, case.shapes(setting.ours, at))
        least_ms = bound.ms(dtype.itemsize, speed['sgemm_gflops'], speed['copy_gb_per_s'])
    aimed = at == case.size and device == CPU and dtype == torch.float32
    return [
        Row(
            name=case.name,
            size=at,
            peer=peer.label,
            ours=found[None],
            theirs=found[peer],
            floor=least_ms,
            rounds=counts,
            targets=dict(case.targets) if aimed and not index else {},
            cannot={what: why for (who, what), why in setting.cannot.items() if who == peer},
        )
        for index, peer in enumerate(setting.peers[1:])
    ]


def _value(task: Callable[[], Any]) -> tuple[Any, float]:
    """What a task returns, None where the peer cannot; and the ms that it took."""
    start = time.perf_counter()
    try:
        value = task()
    except PeerCannot:
        value = None
    return value, 1000 * (time.perf_counter() - start)


def curve(
    case: Case,
    size: Size,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    say: Say = lambda text: None,
) -> Curve:
    """Measure a case from 16x16 to 128x256 pixels, until a point takes longer than 20 s.

    Raises:
        Unequal: as in `measure`; checked at the smallest size.
    """
    peer = case.peers[0]
    found, ended = Curve(case.name, peer.label, size[:2]), set()
    for height, width in CURVE:
        at, pixels = (*size[:2], height, width), height * width
        setting = _Setting(case, at, device, dtype)
        if (height, width) == CURVE[0]:
            setting.check(case.name)
        for what in 'step', 'kept':
            give_back()
            say(f'{case.name}: {what} at {written(at)}')
            refusal = setting.refusal(peer, what)
            if refusal:  # said even where the curve has ended before
                found.refused.setdefault(what, (pixels, refusal))
            ended |= {(peer, what) for what in found.refused}
            sides = [who for who in (None, peer) if (who, what) not in ended]
            tasks = [setting.task(who, what) for who in sides]
            if what == 'step':
                values = took = timed(tasks, 5, device, seconds=6, fewest=0)[0]
            else:
                values, took = zip(*map(_value, tasks)) if tasks else ((), ())
            for who, value, ms in zip(sides, values, took, strict=True):
                if value is None:
                    found.refused[what] = pixels, setting.cannot[who, what]
                    continue
                (found.theirs if who else found.ours)[what][pixels] = value
                if ms > 1000 * SLOW:
                    ended.add((who, what))
    return found


def written(size: Size) -> str:
    return 'x'.join(map(str, size))
