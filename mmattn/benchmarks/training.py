"""Benchmark of whole training steps: the classes and runner of the stock packages, and ours.

Each side trains in a process of its own; they take turns, a few steps at a time.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner as EngineRunner

from mmattn.config.load import change_config, load_config_file, parse_options
from mmattn.engine.network import drop_pretrained, image_size
from mmattn.engine.run_config import class_counts, replace_sync_bn
from mmattn.engine.train import train
from mmattn.engine.workers import count_workers
from mmattn.errors import MmattnError
from mmattn.files import check_writable
from mmattn.progress import track

from .generated_images import generated_loader
from .machine import describe_in_words, describe_machine
from .stock_config import EVALUATION_KEYS, stock_config
from .timing import CPU, peak_bytes

PARTS = ('data', 'forward', 'backward', 'optimizer', 'hooks')
_STEPS = 10**6  # of a training that is ended from outside


class TrainingFailed(MmattnError):
    """One side cannot train."""


@dataclass
class TrainingTimes:
    """Times of the steps of one side.

    Attributes:
        side: 'mmseg', 'mmdet' or 'ours', with its options.
        batch: images of a step.
        steps: for each measured step the ms of each part.
        peak: peak of what torch allocates in a step, in bytes.
    """

    side: str
    batch: int
    steps: list[dict[str, float]] = field(default_factory=list)
    peak: int = 0

    def part(self, name: str) -> float:
        """Median of a part, in ms."""
        return statistics.median(step[name] for step in self.steps)

    @property
    def totals(self) -> list[float]:
        """Whole steps, in ms."""
        return [sum(step.values()) for step in self.steps]


def report_training(
    config: str | Path,
    rounds: int,
    json_path: str | Path | None = None,
    *,
    attention: str | None = None,
    options: dict | list[str] | None = None,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    variants: list[dict[str, Any]] | None = None,
    device: str = 'cpu',
) -> list[TrainingTimes]:
    """Print the time of a training step by parts, for both sides; optionally write it as JSON.

    Args:
        config: path of a config of mmattn.
        rounds: how many turns each side has, of two steps, after a first one that does not count.
        json_path: JSON file for the figures.
        attention: blocks to add on both sides.
        options: changes to the config, dotted keys; a dict or `key=value` strings.
        size: H and W of generated images; None for the data of the config.
        batch: images of a step; None for the config's.
        variants: fields of `TrainOptions` that ours is measured with, in addition to none.
        device: 'cpu' or 'cuda'.

    Raises:
        UsageError: the config has no counterpart in the stock packages.
        TrainingFailed: one side cannot train.
        WriteError: the file cannot be written.
    """
    if json_path:
        check_writable(Path(json_path).parent, '--json')
    options = dict(parse_options(options))
    cfg = change_config(load_config_file(config), options, attention)
    if batch:
        options['train_dataloader.batch_size'] = batch
        cfg.train_dataloader.batch_size = batch
    stock_config(cfg)  # refuse it first
    if size is None and not _has_data(cfg):
        size = image_size(cfg)
        print(f'the data of {config} are not there: images of {size[1]}x{size[0]} are generated')
    task = dict(config=str(config), options=options, attention=attention, size=size, device=device)
    stock = 'mmdet' if cfg.default_scope == 'mmdet' else 'mmseg'
    sides = [dict(side=stock), *(dict(side='ours', train=v) for v in ({}, *(variants or ())))]
    machine = describe_machine(torch.device(device))
    print(describe_in_words(machine))
    print(f'{len(sides)} trainings start, one after the other; then they take turns', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        results = _measure([task | side for side in sides], Path(folder), rounds)
    print(*table_lines(results), sep='\n')
    if json_path:
        content = dict(machine=machine, task=task, sides=[asdict(times) for times in results])
        Path(json_path).write_text(json.dumps(content, indent=1), encoding='utf-8')
    return results


def table_lines(results: list[TrainingTimes]) -> Iterator[str]:
    """A column for each side, a line for each part; ratios are the stock side over the other."""
    stock = results[0]
    yield f'{"ms of a step":<14}' + ''.join(
        f'{times.side:>24}' + (f'{"x":>7}' if times is not stock else '') for times in results
    )
    for name in (*PARTS, 'whole'):
        line = f'{name:<14}'
        for times in results:
            ms = statistics.median(times.totals) if name == 'whole' else times.part(name)
            line += f'{ms:>24.1f}'
            if times is not stock:
                line += f'{_ratio(stock, times, name):>7.2f}'
        yield line
    speeds = ''.join(
        f'{1000 * t.batch / statistics.median(t.totals):>24.3f}' + ' ' * 7 * (t is not stock)
        for t in results
    )
    yield f'{"images/s":<14}{speeds}'
    peaks = ''.join(
        f'{t.peak / 1e6:>24.1f}' + (f'{stock.peak / t.peak:>7.2f}' if t is not stock else '')
        for t in results
    )
    yield f'{"peak MB":<14}{peaks}'
    for times in results[1:]:
        ratios = sorted(a / b for a, b in zip(stock.totals, times.totals, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        yield f'{times.side}: middle half of the ratios {low:.2f} to {high:.2f}'


def _ratio(stock: TrainingTimes, times: TrainingTimes, name: str) -> float:
    """Median of the ratios of single steps; of parts the ratio of their medians."""
    if name == 'whole':
        return statistics.median(a / b for a, b in zip(stock.totals, times.totals, strict=True))
    return stock.part(name) / max(times.part(name), 1e-9)


def _measure(tasks: list[dict], folder: Path, rounds: int) -> list[TrainingTimes]:
    """Let processes that train take turns."""
    context, ends, workers = get_context('spawn'), [], []
    try:
        for index, task in enumerate(tasks):
            end, other = context.Pipe()
            arguments = other, task | dict(work_dir=str(folder / str(index)))
            worker = context.Process(target=_serve, args=arguments, daemon=False)
            worker.start()
            other.close()
            ends.append(end)
            workers.append(worker)
            _receive(end, task)  # ready; one builds after the other
        results = [
            TrainingTimes(_name(task), _receive(end, task, 'batch'))
            for end, task in zip(ends, tasks, strict=True)
        ]
        for turn in track(range(rounds + 1), total=rounds + 1, title='turns of two steps'):
            for end, task, times in zip(ends, tasks, results, strict=True):
                steps = _receive(end, task, 'run')
                if turn:
                    times.steps += steps
        for end, task, times in zip(ends, tasks, results, strict=True):
            times.peak = _receive(end, task, 'peak')
    finally:
        for end, worker in zip(ends, workers):
            end.close()  # ends the training
            worker.join(20)
            if worker.is_alive():
                worker.kill()
    return results


def _name(task: dict) -> str:
    options = ' '.join(f'{k}={v}' if v is not True else k for k, v in task.get('train', {}).items())
    return f'{task["side"]} {options}'.strip()


def _receive(end: Connection, task: dict, command: str | None = None) -> Any:
    """Send a command to a process that trains, and get its answer."""
    try:
        if command:
            end.send(command)
        kind, value = end.recv()
    except (EOFError, OSError) as error:
        raise TrainingFailed(f'{_name(task)}: its process ended; was the memory enough?') from error
    if kind == 'error':
        raise TrainingFailed(f'{_name(task)} cannot train: {value}')
    return value


class _Ended(BaseException):
    """The training is no longer needed."""


def _serve(end: Connection, task: dict) -> None:
    """Train in this process, two steps at each command; what it prints goes to a file."""
    log = os.open(task['work_dir'] + '.log', os.O_WRONLY | os.O_CREAT)
    for stream in 1, 2:
        os.dup2(log, stream)
    try:
        _train(task, _First(end, _Clock()))
    except _Ended:
        return
    except Exception as error:
        lines = str(error).strip().splitlines()
        end.send(('error', lines[-1] if lines else type(error).__name__))


class _Clock:
    """When the parts of a step begin; on a GPU the device's work is waited for."""

    def __init__(self) -> None:
        self.spent, self.last = dict.fromkeys(PARTS, 0.0), 0.0

    def now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return 1000 * time.perf_counter()

    def start(self) -> None:
        self.spent, self.last = dict.fromkeys(PARTS, 0.0), self.now()

    def add(self, part: str) -> None:
        """Count the time since the last call as that of a part."""
        now = self.now()
        self.spent[part] += now - self.last
        self.last = now


class _First(Hook):
    """The first hook of a step: waits for commands between two turns."""

    priority = 'HIGHEST'

    def __init__(self, end: Connection, clock: _Clock) -> None:
        self.end, self.clock, self.left, self.steps = end, clock, 0, []
        self.ready = False

    def before_train(self, runner) -> None:
        runner.register_hook(_Last(self.clock), 'LOWEST')
        self._watch(runner.optim_wrapper, runner.model)

    def _watch(self, wrapper: Any, model: torch.nn.Module) -> None:
        clock = self.clock
        for owner, name, before, after in (
            (wrapper, 'backward', 'forward', 'backward'),
            (wrapper, 'step', 'backward', 'optimizer'),
            (wrapper, 'zero_grad', 'optimizer', 'optimizer'),
            (model, 'train_step', 'hooks', 'forward'),
        ):
            setattr(owner, name, _timed(getattr(owner, name), clock, before, after))

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.ready:
            self.clock.add('data')
            if self.left:
                self.steps.append(self.clock.spent)
                self.left -= 1
                if not self.left:
                    self.end.send(('steps', self.steps))
                    self.steps = []
        else:
            self.end.send(('ready', None))
            self.ready = True
        while not self.left:
            self._obey(runner, data_batch)
        self.clock.start()

    def _obey(self, runner, data_batch) -> None:
        try:
            command = self.end.recv()
        except (EOFError, OSError):
            raise _Ended from None
        if command == 'run':
            self.left = 2
        elif command == 'batch':
            self.end.send(('batch', len(data_batch['inputs'])))
        elif command == 'peak':
            device = next(runner.model.parameters()).device
            step = runner.model.train_step

            def once() -> None:
                step(data_batch, optim_wrapper=runner.optim_wrapper)

            self.end.send(('peak', peak_bytes(once, CPU if device.type == 'cpu' else device)))


class _Last(Hook):
    """The last hook of a step."""

    priority = 'LOWEST'

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self.clock.add('hooks')


def _timed(method: Any, clock: _Clock, before: str, after: str) -> Any:
    """The method, which counts the time until it begins and the time that it takes."""

    def timed(*args, **kwargs):
        clock.add(before)
        result = method(*args, **kwargs)
        clock.add(after)
        return result

    return timed


def _train(task: dict, first: _First) -> None:
    options, attention = dict(task['options']), task['attention']
    cfg = change_config(load_config_file(task['config']), options, attention)
    changes = _without_side_effects(cfg)
    if task['size']:
        classes = max((count for _, count in class_counts(cfg.model, 'model')), default=2)
        changes['train_dataloader'] = generated_loader(cfg, tuple(task['size']), classes)
    elif task['device'] == 'cpu':  # workers would take the time of the other side
        changes |= {'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False}
    if task['side'] == 'ours':
        # MMDetection freezes plugins with their stage
        plugins = enumerate(cfg.model.get('plugins') or ())
        changes |= {f'model.plugins.{i}.learn': False for i, p in plugins if p.get('learn')}
        fields = dict(rehearsal=False, skip_data_check=True, validate=False, hooks=[first])
        fields |= dict(attention=attention, work_dir=task['work_dir'], **task['train'])
        train(task['config'], cfg_options=options | changes, **fields)
        return
    cfg.merge_from_dict(changes)
    stock = stock_config(cfg)
    stock.work_dir, stock.launcher = task['work_dir'], 'none'
    workers = stock.train_dataloader.get('num_workers', 'auto')
    stock.train_dataloader.num_workers = count_workers(workers)
    replace_sync_bn(stock)
    drop_pretrained(stock.model)
    runner = EngineRunner.from_cfg(stock)
    runner.register_hook(first)
    runner.train()


def _without_side_effects(cfg: Config) -> dict:
    """Changes to a config: nothing is saved or drawn, and the end is far."""
    changes: dict[str, Any] = {
        'custom_hooks': [],
        'visualizer.vis_backends': [dict(type='LocalVisBackend')],
        'default_hooks.checkpoint.interval': _STEPS,
        'model.backbone.init_cfg': None,
    }
    changes |= dict.fromkeys(EVALUATION_KEYS)
    if cfg.train_cfg.get('max_iters'):
        changes['train_cfg.max_iters'] = _STEPS
    else:
        changes['train_cfg.max_epochs'] = _STEPS
    return changes


def _has_data(cfg: Config) -> bool:
    root = cfg.train_dataloader.get('dataset', {}).get('data_root')
    return bool(root) and Path(root).is_dir()
