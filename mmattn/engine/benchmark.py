"""Every block beside its peer in one process: equality first, then time and memory."""

import copy
import functools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mmattn.blocks import AttentionBlock
from mmattn.engine.peers import PEERS, PeerCannot
from mmattn.engine.runner import check_writable
from mmattn.errors import MmattnError, UsageError
from mmattn.zoo.catalogue import list_blocks, registered_blocks

_TOLERANCE = 1e-9  # of the largest value, in fp64, where only another function differs by more
_EQUALITY_SIZE = (15, 17)  # H and W at which equality is checked
# the modes in which a block differs so much that each has a row of its own
_VARIANTS = {
    'NonLocal2d': [
        dict(mode=mode)
        for mode in ('embedded_gaussian', 'gaussian', 'dot_product', 'concatenation')
    ],
    'CrissCrossAttention': [dict(recurrence=1), dict(recurrence=2)],
}


@dataclass(frozen=True)
class Row:
    """One block and its peer; times in ms, the least of all rounds, memory in bytes.

    What a peer cannot do, or cannot within the memory of the machine, is None.

    Attributes:
        name, peer: what was run, and the origin of the peer.
        forward, peer_forward: without gradients.
        step, peer_step: forward and backward in training.
        kept, peer_kept: what autograd keeps between forward and backward, the input included.
        peak, peer_peak: most memory at once in forward and backward, beside input and weights.
    """

    name: str
    peer: str
    forward: float
    peer_forward: float | None
    step: float
    peer_step: float | None
    kept: int
    peer_kept: int | None
    peak: int
    peer_peak: int | None


class Unequal(MmattnError):
    """A block and its peer compute different things, so their times mean nothing."""


def machine() -> dict[str, Any]:
    """What the figures hold for, with the speed of a matrix product and of a copy beside them."""
    a, b = torch.randn(2, 1024, 1024)
    x, y = torch.randn(2, 1 << 26)  # 268 MB each
    product, copied = (min(_time(f) for _ in range(5)) for f in (lambda: a @ b, lambda: x.copy_(y)))
    tuned = int(os.environ.get('MALLOC_MMAP_THRESHOLD_', 0)) > 1 << 30
    return dict(
        cpu=_cpu(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        malloc='tuned' if tuned else 'default',
        sgemm_gflops=round(2 * 1024**3 / product / 1e6),
        copy_gb_per_s=round(2 * x.numel() * 4 / copied / 1e6, 1),
        load=round(os.getloadavg()[0], 1),
    )


def benchmark(
    pattern: str = '*', size: tuple[int, int, int, int] = (2, 256, 64, 64), rounds: int = 7
) -> Iterator[Row]:
    """Measure blocks whose name fits the pattern, in fp32 on the CPU, with torch's threads.

    Args:
        pattern: as of `list_blocks`.
        size: (N, C, H, W) of the input.
        rounds: block and peer in turn, as often; the least time counts.

    Raises:
        UsageError: no name fits; a number of channels that a block cannot take.
        Unequal: in fp64 a block differs from its peer by more than 1e-9 of the largest value.
    """
    classes = registered_blocks()
    for row in list_blocks(pattern):
        if row.name in PEERS:
            for arguments in _VARIANTS.get(row.name, [{}]):
                yield _measure(classes[row.name], arguments, size, rounds)


def _measure(cls: type[AttentionBlock], arguments: dict, size: tuple, rounds: int) -> Row:
    torch.manual_seed(0)
    batch, channels, height, width = size
    try:
        block = _awake(cls.build(channels, **arguments))
    except ValueError as error:
        raise UsageError(f'--size: {channels} channels do not fit: {error}.') from error
    inputs = [torch.randn(shape) for shape in block.input_shapes(batch, height, width)]
    origin, make = PEERS[cls.__name__]
    label = ', '.join(str(value) for value in arguments.values())
    name = f'{cls.__name__} {label}'.strip()
    _equal(name, block, make, batch)
    runs = block, make(block)
    gradient = torch.randn_like(block(*inputs))
    forward, peer_forward = least(rounds, *(functools.partial(_forward, f, inputs) for f in runs))
    steps = [_step(f, inputs, gradient) for f in runs]
    step, peer_step = least(rounds, *steps)
    kept, peer_kept = (_try(_kept, f, inputs) for f in runs)
    most, peer_most = (_try(peak, f) for f in steps)
    return Row(
        name=name,
        peer=origin,
        forward=forward,
        peer_forward=peer_forward,
        step=step,
        peer_step=peer_step,
        kept=kept,
        peer_kept=peer_kept,
        peak=most,
        peer_peak=peer_most,
    )


@torch.no_grad()
def _forward(run: Callable, inputs: list[Tensor]) -> None:
    run(*inputs)


def _try(f: Callable, *args: Any) -> Any:
    """What f returns; None where the peer cannot."""
    try:
        return f(*args)
    except PeerCannot:
        return None


def _awake(block: AttentionBlock) -> AttentionBlock:
    """Move what starts constant, such as a gamma of 0, so that all of the block takes part."""
    with torch.no_grad():
        for value in block.parameters():
            if (value == value.flatten()[0]).all():
                value.add_(0.1 * torch.randn_like(value))
    return block.train()


def _equal(name: str, block: AttentionBlock, make: Callable, batch: int) -> None:
    """Raise if outputs, in training and in eval, or input gradients differ."""
    block = copy.deepcopy(block).double()
    shapes = block.input_shapes(batch, *_EQUALITY_SIZE)
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    weight = torch.randn_like(block(*inputs))  # not a sum: batch norm would leave it no gradient
    for training in True, False:
        found = []
        for which in range(2):
            twin = copy.deepcopy(block).train(training)
            run = make(twin) if which else twin
            x = [t.clone().requires_grad_() for t in inputs]
            with torch.no_grad():
                y = run(*inputs)
            twin.load_state_dict(block.state_dict())  # as before this step of the statistics
            gradients = _try(_gradients, run, x, weight) or []
            found.append([y, *gradients])
        for ours, theirs in zip(*found, strict=False):
            error = (ours - theirs).abs().max() / theirs.abs().max()
            if not error <= _TOLERANCE:
                raise Unequal(f'{name} differs from its peer by {error:.1e} of the largest value.')


def _gradients(run: Callable, inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    run(*inputs).backward(weight)
    return [t.grad for t in inputs]


def _step(run: Callable, inputs: list[Tensor], gradient: Tensor) -> Callable[[], None]:
    x = [t.clone().requires_grad_() for t in inputs]

    def step() -> None:
        for t in x:
            t.grad = None
        if isinstance(run, nn.Module):
            run.zero_grad()
        run(*x).backward(gradient)

    return step


def least(rounds: int, *candidates: Callable[[], Any]) -> list[float | None]:
    """ms of each candidate, the least of the rounds; in turn within each round."""
    able = [_try(lambda f=f: (f(), True)[1]) for f in candidates]
    times = [
        [_time(f) if ok else None for f, ok in zip(candidates, able, strict=True)]
        for _ in range(rounds)
    ]
    return [min(column) if column[0] else None for column in zip(*times, strict=True)]


def _time(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    f()
    return 1000 * (time.perf_counter() - start)


def _kept(run: Callable, inputs: list[Tensor]) -> int:
    """Bytes of the storages that autograd keeps after a forward pass, weights excepted."""
    weights = run.parameters() if isinstance(run, nn.Module) else []
    known = {value.untyped_storage().data_ptr() for value in weights}
    kept = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known and not isinstance(t, nn.Parameter):
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = run(*[t.clone().requires_grad_() for t in inputs])
    del y
    return sum(kept.values())


def peak(step: Callable[[], None]) -> int:
    """Most bytes at once that a step allocates."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    now = most = 0
    events = trace.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == '[memory]'), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def _cpu() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            names = [line.partition(':')[2].strip() for line in file if 'model name' in line]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def report(
    pattern: str = '*',
    size: tuple[int, int, int, int] = (2, 256, 64, 64),
    rounds: int = 7,
    json_path: str | Path | None = None,
) -> list[Row]:
    """Measure, print a line a block as it comes, and write all to a JSON file if asked.

    Raises:
        UsageError: a size or number of rounds below 1; no name fits.
        WriteError: the file cannot be written.
    """
    if min(*size, rounds) < 1:
        raise UsageError(f'--size {size} --rounds {rounds}: allowed are numbers from 1.')
    if json_path:
        check_writable(Path(json_path).parent, '--json')
    torch.set_num_threads(1)
    rows, about = [], machine()
    print(', '.join(f'{key} {value}' for key, value in about.items()))
    shape = 'x'.join(map(str, size))
    print(f'{shape}, fp32, least of {rounds} rounds; x: peer over ours')
    columns = 'forward ms', 'step ms', 'kept MB', 'peak MB'
    print(f'{"block":<30}{"peer":<9}' + ''.join(f'{name:>12}{"x":>7}' for name in columns))
    for row in benchmark(pattern, size, rounds):
        rows.append(row)
        print(f'{row.name:<30}{row.peer:<9}' + ''.join(map(cell, _pairs(row))))
    if json_path:
        content = dict(machine=about, size=size, rounds=rounds, rows=[asdict(r) for r in rows])
        Path(json_path).write_text(json.dumps(content, indent=1), encoding='utf-8')
    return rows


def _pairs(row: Row) -> list[tuple[float, float | None]]:
    mega = 1e6
    memory = [(row.kept, row.peer_kept), (row.peak, row.peer_peak)]
    scaled = [(ours / mega, theirs and theirs / mega) for ours, theirs in memory]
    return [(row.forward, row.peer_forward), (row.step, row.peer_step), *scaled]


def cell(pair: tuple[float, float | None]) -> str:
    ours, theirs = pair
    ratio = f'{theirs / ours:.2f}' if theirs and ours else '-'
    return f'{ours:>12.1f}{ratio:>7}'
