"""What a network costs, part by part and block by block, and whether its training fits."""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from mmattn.benchmarks.timing import CPU, describe_machine, find_device, time_interleaved
from mmattn.blocks import AttentionBlock
from mmattn.config.load import load_config
from mmattn.engine.network import build_network, image_size
from mmattn.errors import Exit, MmattnError, UsageError
from mmattn.files import check_writable
from mmattn.ops.memory import free_memory
from mmattn.plugins import named_plugins
from mmattn.plugins.dry_run import DryRun, dry_run, input_channels, run_parts
from mmattn.progress import track

from .cost_plot import plot_cost

_ROUNDS, _SECONDS = 5, 5  # at most, of forward passes that are timed after a first one
_MOMENTS = dict(SGD=1, Adam=2, AdamW=2, RMSprop=1, NAdam=2, RAdam=2, Adagrad=1)  # numbers a weight


class DoesNotFit(MmattnError):
    """Training needs more memory than there is."""

    code = Exit.MEMORY


@dataclass
class CostRow:
    """A part of the network, or an attention block in one.

    Attributes:
        path: of the module; '' for the whole network.
        type: its class.
        block: whether it is an attention block.
        runs: how often it runs for an image.
        parameters: numbers that it learns or could.
        macs: multiplications and additions in pairs, for one image in testing.
        kept: bytes that autograd keeps in training, for one image; half of those for two where a
            norm cannot be trained on one.
        ms: of its forward passes for one image in testing; None if not measured.
    """

    path: str
    type: str
    block: bool
    runs: int
    parameters: int
    macs: int
    kept: int
    ms: float | None = None


@dataclass
class Memory:
    """Bytes that training takes on one device.

    Attributes:
        weights, gradients, optimizer: of the parameters.
        kept: what autograd keeps for a batch.
        backward: the most that the backward pass has at once: of what was kept what it has not used
            yet, of the gradients those that it has made, and what it works on, about twice the
            largest tensor kept in the part of the network where it is.
        limit: what there is; None if the system does not say.
    """

    weights: int
    gradients: int
    optimizer: int
    kept: int
    backward: int
    limit: float | None

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + max(self.backward, self.gradients)

    @property
    def fits(self) -> bool | None:
        return None if self.limit is None else self.total <= self.limit


@dataclass
class Cost:
    """The cost of a network.

    Attributes:
        rows: the whole network, its parts, and the attention blocks.
        size: H and W of an image.
        batch: images on one device in training.
        memory: of training with that batch.
    """

    rows: list[CostRow]
    size: tuple[int, int]
    batch: int
    memory: Memory


def measure_cost(
    config: str | Path,
    *,
    attention: str | None = None,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    memory_limit: float | None = None,
    device: str = 'cpu',
    latency: bool = True,
    options: dict | list[str] | None = None,
) -> Cost:
    """Measure what a config's network costs.

    Counts are of a run without values, so any size and batch can be asked about; only the latency
    is measured by running. Heads of two stages see 1000 boxes an image in testing; what comes after
    the heads, such as suppression, is not counted.

    Args:
        config: its path.
        attention: blocks to add.
        size: H and W of images; None for those of training.
        batch: images on one device; None for the config's.
        memory_limit: GB; None for what is free on the device.
        device: where the latency is measured.
        latency: whether it is.
        options: changes to the config, dotted keys; a dict or `key=value` strings.

    Raises:
        UsageError: a size, batch or limit that is not above 0, or too small for the network.
    """
    if min(*(size or (1,)), 1 if batch is None else batch) < 1:
        raise UsageError(f'--size {size} --batch {batch}: allowed are numbers from 1.')
    if memory_limit is not None and memory_limit <= 0:
        raise UsageError(f'--memory-limit {memory_limit}: allowed are GB above 0.')
    where = find_device(device)
    model, cfg = build_network(config, options, attention)
    size = size or image_size(cfg)
    batch = batch or cfg.train_dataloader['batch_size']
    modules = {'': model} | _parts(model) | _blocks(model)
    try:
        tested = dry_run(model.eval(), modules, size)
        trained, images = _trained(model, modules, size)
        batched = dry_run(model, modules, size, batch=batch, training=True)
    except ValueError as error:
        raise UsageError(f'--size {size[0]} {size[1]}: {error}.') from error
    for trial in tested, trained, batched:
        if trial.reason:
            raise UsageError(f'{config} cannot be counted at {size[0]} {size[1]}: {trial.reason}')
    rows = [
        CostRow(
            path=path,
            type=type(module).__name__,
            block=path in _blocks(model),
            runs=len(tested.modules[path].input_shapes) if path else 1,
            parameters=sum(p.numel() for p in module.parameters()),
            macs=tested.modules[path].macs,
            kept=trained.modules[path].saved_bytes // images,
        )
        for path, module in modules.items()
    ]
    if latency:
        times = _latency(model.eval().to(where), modules, size, where)
        for row in rows:
            row.ms = times[row.path]
    rows[0].macs, rows[0].kept = tested.total.macs, trained.total.saved_bytes // images
    limit = memory_limit * 1e9 if memory_limit else free_memory(where)
    return Cost(rows, size, batch, _memory(model, cfg, batched, limit))


def _trained(
    model: nn.Module, modules: dict[str, nn.Module], size: tuple[int, int]
) -> tuple[DryRun, int]:
    """A run in training, on as few images as can be: two where a norm cannot be trained on one."""
    try:
        return dry_run(model.train(), modules, size, training=True), 1
    except ValueError:
        return dry_run(model, modules, size, batch=2, training=True), 2


def _parts(model: nn.Module, path: str = '') -> dict[str, nn.Module]:
    """What a network is made of: stages of the backbone, neck, heads; of lists, what is in them."""
    found = {}
    for name, child in model.named_children():
        name = f'{path}.{name}'.lstrip('.')
        if name in ('backbone', 'roi_head') or isinstance(child, nn.ModuleList | nn.ModuleDict):
            found |= _parts(child, name)
        elif any(True for _ in child.parameters()):
            found[name] = child
    return found


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Attention blocks, and whatever else was put in, without those inside others."""
    put, found = dict(named_plugins(model)), {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f'{path}.') for path in found)
        if not inside and (name in put or isinstance(module, AttentionBlock)):
            found[name] = module
    return found


def _latency(
    model: nn.Module, modules: dict[str, nn.Module], size: tuple[int, int], device: torch.device
) -> dict[str, float]:
    """ms of each module, the least of some passes, all its runs in one together."""
    image = torch.randn(1, input_channels(model), *size, device=device)
    started: list[float] = []
    now: dict[str, float] = {}

    def clock() -> float:
        if device != CPU:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def enter(module: nn.Module, inputs: tuple) -> None:
        started.append(clock())

    def leave(name: str, module: nn.Module, inputs: tuple, output: object) -> None:
        now[name] = now.get(name, 0.0) + 1000 * (clock() - started.pop())

    least: dict[str, float] = {}
    begun = time.perf_counter()
    with ExitStack() as stack, torch.no_grad():
        for name, module in modules.items():
            if name:
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(partial(leave, name)).remove)
        for index in range(_ROUNDS + 1):
            now.clear()
            start = clock()
            run_parts(model, image)
            now[''] = 1000 * (clock() - start)
            if index:  # the first one is slower than all others
                least = {name: min(ms, least.get(name, ms)) for name, ms in now.items()}
            if index and time.perf_counter() - begun > _SECONDS:
                break
    return {name: least.get(name, 0.0) for name in modules}


def latencies(
    config: str | Path,
    names: Iterable[str],
    *,
    size: tuple[int, int] | None = None,
    device: str = 'cpu',
    options: dict | list[str] | None = None,
) -> dict[str, float]:
    """ms of one image with each of several blocks: in turn, so that what else runs meets all alike.

    Args:
        config, size, device, options: as of `measure_cost`.
        names: blocks, 'none', or 'a+b' for both at once.
    """
    where, names, passes = find_device(device), list(names), []
    for name in names:
        model, cfg = build_network(config, options, name.replace('+', ','))
        channels, sides = input_channels(model), size or image_size(cfg)
        image = torch.randn(1, channels, *sides, device=where)
        passes.append(partial(run_parts, model.eval().to(where), image))
    with torch.no_grad():
        found, _ = time_interleaved(passes, _ROUNDS, where, _SECONDS * len(names), min_rounds=1)
    return dict(zip(names, found, strict=True))


def _memory(model: nn.Module, cfg: Config, trial: DryRun, limit: float | None) -> Memory:
    weights = sum(v.nbytes for v in (*model.parameters(), *model.buffers()))
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    optimizer = cfg.optim_wrapper['optimizer']
    moments = _MOMENTS.get(optimizer['type'], 2)
    if optimizer['type'] in ('SGD', 'RMSprop') and not optimizer.get('momentum'):
        moments -= optimizer['type'] == 'SGD'
    remaining, made, most = trial.total.saved_bytes, 0, 0
    for path, part in reversed(_parts(model).items()):  # the last part goes first
        made += sum(p.nbytes for p in part.parameters() if p.requires_grad)
        stats = trial.modules[path]
        most = max(most, remaining + made + 2 * stats.largest_saved)
        remaining -= stats.saved_bytes
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=moments * gradients,
        kept=trial.total.saved_bytes,
        backward=most,
        limit=limit,
    )


# ---- showing it --------------------------------------------------------------------------------
def report_cost(
    config: str | Path,
    *,
    json_path: str | Path | None = None,
    plot_path: str | Path | None = None,
    device: str = 'cpu',
    **arguments,
) -> Cost:
    """Print the table, and write it as JSON and draw it if asked.

    Raises:
        DoesNotFit: after all is written.
        UsageError, WriteError: see `measure_cost`; a file cannot be written.
    """
    for path, flag in (json_path, '--json'), (plot_path, '--plot'):
        if path:
            check_writable(Path(path).parent, flag)
    found = measure_cost(config, device=device, **arguments)
    print(*lines(found, describe_machine(find_device(device))), sep='\n')
    if json_path:
        Path(json_path).write_text(json.dumps(asdict(found), indent=1), encoding='utf-8')
    if plot_path:
        plot_cost(found, Path(config).stem, plot_path)
    sentence = fits(found)
    if found.memory.fits is False:
        raise DoesNotFit(sentence)
    print(sentence)
    return found


def report_comparison(
    config: str | Path,
    names: list[str],
    *,
    json_path: str | Path | None = None,
    device: str = 'cpu',
    **arguments,
) -> dict[str, Cost]:
    """Print what a network costs with each of several blocks, as a table in Markdown.

    Args:
        config: its path.
        names: blocks, 'a+b' for both at once; the plain network, 'none', comes first.
        json_path: a file for the figures.
        device, arguments: of `measure_cost`.

    Raises:
        UsageError, WriteError: see `measure_cost`; a file cannot be written.
    """
    if json_path:
        check_writable(Path(json_path).parent, '--json')
    names = list(dict.fromkeys(['none', *names]))
    for name in names:
        load_config(config, attention=name.replace('+', ','))  # all are known before the first
    wanted = arguments.pop('latency', True)
    found = {
        name: measure_cost(
            config, attention=name.replace('+', ','), device=device, latency=False, **arguments
        )
        for name in track(names, total=len(names), title='cost')
    }
    if wanted:
        size, options = found['none'].size, arguments.get('options')
        times = latencies(config, names, size=size, device=device, options=options)
        for name, cost in found.items():
            cost.rows[0].ms = times[name]
    print(*comparison(found, describe_machine(find_device(device))), sep='\n')
    if json_path:
        content = {name: asdict(cost) for name, cost in found.items()}
        Path(json_path).write_text(json.dumps(content, indent=1), encoding='utf-8')
    return found


def comparison(found: dict[str, Cost], about: dict) -> Iterator[str]:
    """A row for each block: the whole network, and what the block adds to the plain one."""
    plain = found['none']
    height, width = plain.size
    batch = plain.batch
    images = f'{batch} image' + 's' * (batch > 1)
    yield f'| attention | parameters | GMACs | kept, MB | ms | training with {images}, GB |'
    yield '|---|---:|---:|---:|---:|---:|'
    for name, cost in found.items():
        row, base = cost.rows[0], plain.rows[0]
        pairs = [
            (f'{row.parameters:,}', row.parameters - base.parameters, ',', 1),
            (f'{row.macs / 1e9:.2f}', row.macs - base.macs, ',.2f', 1e9),
            (f'{row.kept / 1e6:.1f}', row.kept - base.kept, ',.1f', 1e6),
        ]
        if row.ms is not None:
            pairs.append((f'{row.ms:.0f}', row.ms - base.ms, ',.0f', 1))
        cells = [
            text if name == 'none' else f'{text} ({more / unit if unit > 1 else more:+{form}})'
            for text, more, form, unit in pairs
        ]
        if row.ms is None:
            cells.append('')
        yield f'| `{name}` | {" | ".join(cells)} | {cost.memory.total / 1e9:.2f} |'
    yield ''
    yield f'One image of {width}x{height}; ' + ', '.join(f'{k} {v}' for k, v in about.items()) + '.'


def lines(cost: Cost, about: dict) -> Iterator[str]:
    """The table: the whole network, its parts, and its attention blocks."""
    height, width = cost.size
    yield f'one image of {width}x{height}; ' + ', '.join(f'{k} {v}' for k, v in about.items())
    wide = max(len(row.path) for row in cost.rows) + 2
    yield (
        f'{"module":<{wide}}{"type":<22}{"runs":>5}{"parameters":>13}{"GMACs":>10}{"kept MB":>10}'
        f'{"ms":>10}'
    )
    for row in cost.rows:
        name = row.path or 'all'
        ms = '-' if row.ms is None else f'{row.ms:.1f}'
        yield (
            f'{name:<{wide}}{row.type:<22}{row.runs:>5}{row.parameters:>13,}'
            f'{row.macs / 1e9:>10.2f}{row.kept / 1e6:>10.1f}{ms:>10}'
        )
    whole, blocks = cost.rows[0], [row for row in cost.rows if row.block]
    if blocks:
        shares = dict(
            parameters=sum(row.parameters for row in blocks) / whole.parameters,
            GMACs=sum(row.macs for row in blocks) / whole.macs,
            kept=sum(row.kept for row in blocks) / whole.kept,
        )
        if whole.ms:
            shares['ms'] = sum(row.ms for row in blocks) / whole.ms
        said = ', '.join(f'{100 * share:.1f} % of {name}' for name, share in shares.items())
        yield f'{len(blocks)} attention block{"" if len(blocks) == 1 else "s"}: {said}'


def fits(cost: Cost) -> str:
    """Whether training fits in memory, in a sentence."""
    memory = cost.memory
    parts = ', '.join(
        f'{name} {getattr(memory, name) / 1e9:.2f}' for name in ('weights', 'optimizer', 'backward')
    )
    need = f'training with {cost.batch} images a device needs about {memory.total / 1e9:.1f} GB'
    if memory.limit is None:
        return f'{need} ({parts}); what is free is not known.'
    limit = f'{memory.limit / 1e9:.1f} GB'
    if memory.fits:
        return f'{need} ({parts}) and fits in {limit}.'
    return f'{need} ({parts}) and does not fit in {limit}. Lower the batch size or the crop.'
