"""Cost of a network: parameters, MACs, memory and latency of its parts and attention blocks."""

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from mmattn.benchmarks.timing import CPU, find_device, time_interleaved
from mmattn.blocks import AttentionBlock
from mmattn.engine.network import build_network, image_size
from mmattn.errors import UsageError
from mmattn.ops.memory import free_memory
from mmattn.plugins import named_plugins
from mmattn.plugins.dry_run import DryRun, dry_run, input_channels, run_parts

_MAX_ROUNDS, _MAX_SECONDS = 5, 5  # for timed forward passes, after a warm-up
# optimizer -> state values per parameter
_MOMENTS = dict(SGD=1, Adam=2, AdamW=2, RMSprop=1, NAdam=2, RAdam=2, Adagrad=1)


@dataclass
class CostRow:
    """Cost of the network, of a part, or of an attention block in one.

    Attributes:
        path: path of the module; '' for the whole network.
        type: class name of the module.
        block: whether it is an attention block.
        runs: number of its forward passes per image.
        parameters: number of parameters, frozen ones included.
        macs: multiply-accumulates for one image in testing.
        saved_bytes: bytes saved for backward for one image; half of those for two images where a
            norm cannot be trained on one.
        ms: time of its forward passes for one image in testing; None if not measured.
    """

    path: str
    type: str
    block: bool
    runs: int
    parameters: int
    macs: int
    saved_bytes: int
    ms: float | None = None


@dataclass
class Memory:
    """Bytes that training takes on one device.

    Attributes:
        weights: bytes of parameters and buffers.
        gradients: bytes of the gradients.
        optimizer: bytes of the optimizer state.
        saved_bytes: bytes saved for backward for a batch.
        backward: peak of the backward pass: saved tensors not used yet, gradients computed so far,
            and working memory, about twice the largest saved tensor of the part at hand.
        limit: memory available; None if unknown.
    """

    weights: int
    gradients: int
    optimizer: int
    saved_bytes: int
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
        rows: costs of the whole network, its parts, and the attention blocks.
        size: H and W of an image.
        batch: images per device in training.
        memory: memory of training with that batch.
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
    """Measure the cost of a config's network.

    Counts come from a dry run, so any size and batch is possible; only the latency is measured by
    running the network. Two-stage heads see 1000 boxes per image in testing; postprocessing, such
    as non-maximum suppression, is not counted.

    Args:
        config: path of the config.
        attention: blocks to add.
        size: H and W of images; None for the size in training.
        batch: images per device; None for the batch size of the config.
        memory_limit: memory available in GB; None for the free memory of the device.
        device: device on which the latency is measured.
        latency: whether to measure the latency.
        options: changes to the config, dotted keys; a dict or `key=value` strings.

    Raises:
        UsageError: a size, batch or limit is not above 0, or too small for the network.
    """
    if min(*(size or (1,)), 1 if batch is None else batch) < 1:
        raise UsageError(f'--size {size} --batch {batch}: allowed are numbers from 1.')
    if memory_limit is not None and memory_limit <= 0:
        raise UsageError(f'--memory-limit {memory_limit}: allowed are GB above 0.')
    torch_device = find_device(device)
    model, cfg = build_network(config, options, attention)
    size = size or image_size(cfg)
    batch = batch or cfg.train_dataloader['batch_size']
    modules = {'': model} | _parts(model) | _blocks(model)
    try:
        testing = dry_run(model.eval(), modules, size)
        training, images = _training_dry_run(model, modules, size)
        batch_training = dry_run(model, modules, size, batch=batch, training=True)
    except ValueError as error:
        raise UsageError(f'--size {size[0]} {size[1]}: {error}.') from error
    for run in testing, training, batch_training:
        if run.reason:
            raise UsageError(f'{config} cannot be counted at {size[0]} {size[1]}: {run.reason}')
    rows = [
        CostRow(
            path=path,
            type=type(module).__name__,
            block=path in _blocks(model),
            runs=len(testing.modules[path].input_shapes) if path else 1,
            parameters=sum(p.numel() for p in module.parameters()),
            macs=testing.modules[path].macs,
            saved_bytes=training.modules[path].saved_bytes // images,
        )
        for path, module in modules.items()
    ]
    if latency:
        times = _latency(model.eval().to(torch_device), modules, size, torch_device)
        for row in rows:
            row.ms = times[row.path]
    rows[0].macs = testing.total.macs
    rows[0].saved_bytes = training.total.saved_bytes // images
    limit = memory_limit * 1e9 if memory_limit else free_memory(torch_device)
    return Cost(rows, size, batch, _training_memory(model, cfg, batch_training, limit))


def kept_bytes(
    config: str | Path,
    *,
    attention: str | None = None,
    size: tuple[int, int] | None = None,
    options: dict | list[str] | None = None,
) -> int:
    """Bytes saved for backward for one image where plugins keep what they need.

    Args:
        config, attention, size, options: as in `measure_cost`.
    """
    model, cfg = build_network(config, options, attention)
    for _, block in named_plugins(model):
        block.plugin = replace(block.plugin, memory='keep')
    modules = {'': model} | _blocks(model)  # a block that refuses one image is named
    training, images = _training_dry_run(model, modules, size or image_size(cfg))
    return training.total.saved_bytes // images


def _training_dry_run(
    model: nn.Module, modules: dict[str, nn.Module], size: tuple[int, int]
) -> tuple[DryRun, int]:
    """Dry run in training, and its batch size: 1, or 2 where a norm cannot be trained on one."""
    try:
        return dry_run(model.train(), modules, size, training=True), 1
    except ValueError:
        return dry_run(model, modules, size, batch=2, training=True), 2


def _parts(model: nn.Module, path: str = '') -> dict[str, nn.Module]:
    """Parts of a network: stages of the backbone, neck, heads; the members of lists."""
    parts = {}
    for name, child in model.named_children():
        name = f'{path}.{name}'.lstrip('.')
        if name in ('backbone', 'roi_head') or isinstance(child, nn.ModuleList | nn.ModuleDict):
            parts |= _parts(child, name)
        elif any(True for _ in child.parameters()):
            parts[name] = child
    return parts


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Attention blocks and other plugins, without those inside another block."""
    plugins, blocks = dict(named_plugins(model)), {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f'{path}.') for path in blocks)
        if not inside and (name in plugins or isinstance(module, AttentionBlock)):
            blocks[name] = module
    return blocks


def _latency(
    model: nn.Module, modules: dict[str, nn.Module], size: tuple[int, int], device: torch.device
) -> dict[str, float]:
    """Time of each module in ms, summed over its runs in a pass; the shortest of some passes."""
    image = torch.randn(1, input_channels(model), *size, device=device)
    start_times: list[float] = []
    current: dict[str, float] = {}

    def clock() -> float:
        if device != CPU:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def enter(module: nn.Module, inputs: tuple) -> None:
        start_times.append(clock())

    def leave(name: str, module: nn.Module, inputs: tuple, output: object) -> None:
        current[name] = current.get(name, 0.0) + 1000 * (clock() - start_times.pop())

    shortest: dict[str, float] = {}
    begin = time.perf_counter()
    with ExitStack() as stack, torch.no_grad():
        for name, module in modules.items():
            if name:
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(partial(leave, name)).remove)
        for index in range(_MAX_ROUNDS + 1):
            current.clear()
            start = clock()
            run_parts(model, image)
            current[''] = 1000 * (clock() - start)
            if index:  # the first pass is a warm-up
                shortest = {name: min(ms, shortest.get(name, ms)) for name, ms in current.items()}
            if index and time.perf_counter() - begin > _MAX_SECONDS:
                break
    return {name: shortest.get(name, 0.0) for name in modules}


def latencies(
    config: str | Path,
    names: Iterable[str],
    *,
    size: tuple[int, int] | None = None,
    device: str = 'cpu',
    options: dict | list[str] | None = None,
) -> dict[str, float]:
    """Latency of one image in ms with each of several blocks, alternating so that load is shared.

    Args:
        config, size, device, options: as in `measure_cost`.
        names: blocks, 'none', or 'a+b' for both at once.
    """
    torch_device, names, passes = find_device(device), list(names), []
    for name in names:
        model, cfg = build_network(config, options, name.replace('+', ','))
        shape = (1, input_channels(model), *(size or image_size(cfg)))
        image = torch.randn(shape, device=torch_device)
        passes.append(partial(run_parts, model.eval().to(torch_device), image))
    with torch.no_grad():
        times = time_interleaved(
            passes, _MAX_ROUNDS, torch_device, _MAX_SECONDS * len(names), min_rounds=1
        )
    return {name: min(ms) for name, ms in zip(names, times, strict=True)}


def _training_memory(
    model: nn.Module, cfg: Config, training: DryRun, limit: float | None
) -> Memory:
    weights = sum(v.nbytes for v in (*model.parameters(), *model.buffers()))
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    optimizer = cfg.optim_wrapper['optimizer']
    moments = _MOMENTS.get(optimizer['type'], 2)
    if optimizer['type'] in ('SGD', 'RMSprop') and not optimizer.get('momentum'):
        moments -= optimizer['type'] == 'SGD'
    saved, computed, peak = training.total.saved_bytes, 0, 0
    for path, part in reversed(_parts(model).items()):  # backward starts at the last part
        computed += sum(p.nbytes for p in part.parameters() if p.requires_grad)
        stats = training.modules[path]
        peak = max(peak, saved + computed + 2 * stats.largest_saved)
        saved -= stats.saved_bytes
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=moments * gradients,
        saved_bytes=training.total.saved_bytes,
        backward=peak,
        limit=limit,
    )
