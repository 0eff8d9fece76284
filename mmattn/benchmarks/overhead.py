"""Overhead of plugins: each network against itself without plugins, alternating.

Also the overhead of the guarantees of training: watching for non-finite values, seeded loading of
samples, checkpoints that survive a kill.
"""

import json
import os
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from mmattn.checkpoint.write import write_checkpoint
from mmattn.config.load import load_config
from mmattn.engine.hooks.guard import GuardHook
from mmattn.engine.nonfinite import NonFiniteDetector
from mmattn.engine.resume.rng import derive_seed, seeded
from mmattn.files import check_writable
from mmattn.plugins import insert

from .machine import describe_in_words, describe_machine
from .timing import min_times

_IMAGE = (256, 320)  # height and width


@dataclass(frozen=True)
class Overhead:
    """One comparison, in ms, the shortest time of all rounds.

    Attributes:
        task: task that was timed.
        stock: time without plugins, or with mmdet's class.
        ours: time with plugins, or with our class.
    """

    task: str
    stock: float
    ours: float


class _NoOp(nn.Module):
    """A block that does nothing, so that only the overhead of plugins is measured."""

    _abbr_ = 'nothing'

    def __init__(self, in_channels: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def report_overhead(config: str | Path, rounds: int, json_path: str | Path | None = None) -> None:
    """Print the overhead of plugins in a Mask R-CNN config; optionally write it as JSON.

    Args:
        config: config of a Mask R-CNN without plugins.
        rounds: how often both are timed, alternating; the shortest time counts.
        json_path: JSON file for the figures.
    """
    _report(lambda: _comparisons(config), rounds, json_path)


def report_trust(config: str | Path, rounds: int, json_path: str | Path | None = None) -> None:
    """Print the overhead of the guarantees of training: a watched step, a safe checkpoint.

    Args:
        config: config of a Mask R-CNN.
        rounds, json_path: as in `report_overhead`.
    """
    with tempfile.TemporaryDirectory(dir='.') as folder:  # on the disk that training writes to
        _report(lambda: _guarantees(config, Path(folder)), rounds, json_path)


def _report(comparisons: Callable, rounds: int, json_path: str | Path | None) -> None:
    if json_path:
        check_writable(Path(json_path).parent, '--json')
    torch.set_num_threads(1)
    machine = describe_machine()
    print(describe_in_words(machine))
    print(f'fp32, images of {_IMAGE[1]}x{_IMAGE[0]}, best of {rounds} rounds')
    print(f'{"task":<62}{"stock ms":>10}{"ours ms":>10}{"ratio":>8}')
    overheads = []
    for task, stock, ours in comparisons():
        overheads.append(Overhead(task, *min_times(rounds, stock, ours)))
        stock_ms, ours_ms = overheads[-1].stock, overheads[-1].ours
        print(f'{task:<62}{stock_ms:>10.1f}{ours_ms:>10.1f}{ours_ms / stock_ms:>8.3f}')
    if json_path:
        content = dict(
            machine=machine, rounds=rounds, rows=[asdict(overhead) for overhead in overheads]
        )
        Path(json_path).write_text(json.dumps(content, indent=1), encoding='utf-8')


def _guarantees(config: str | Path, folder: Path) -> list[tuple[str, Callable, Callable]]:
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(load_config(config, {'model.backbone.init_cfg': None}).model)
    model.train()
    plain, watched = (
        OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)) for _ in range(2)
    )
    detector = NonFiniteDetector(watched, _unexpected)
    image = torch.randint(256, (3, *_IMAGE), dtype=torch.uint8)
    batch = dict(inputs=[image], data_samples=[_sample()])
    guard, runner = GuardHook(), SimpleNamespace(iter=0, optim_wrapper=watched, nonfinite=detector)

    def step() -> None:
        torch.manual_seed(0)
        model.train_step(deepcopy(batch), plain)

    def guarded() -> None:
        torch.manual_seed(0)
        with seeded(derive_seed(0, 'sample', 0, 0)):  # as loading does for each image
            data = deepcopy(batch)
        guard.before_train_iter(runner, 0, data)
        model.train_step(data, watched)
        guard.after_train_iter(runner, 0, data)

    def save() -> None:
        with open(folder / 'plain.pth', 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())

    step()
    content = dict(state_dict=model.state_dict(), optimizer=plain.state_dict())
    return [
        ('training step, Mask R-CNN; with checks', step, guarded),
        (
            'checkpoint, torch.save with fsync; crash-safe',
            save,
            lambda: write_checkpoint(folder / 'iter_1.pth', content, dict(iter=1)),
        ),
    ]


def _unexpected(name: str, value: float | None, iteration: int) -> None:
    raise AssertionError(f'{name} {value} at iteration {iteration}')


def _comparisons(config: str | Path) -> list[tuple[str, Callable, Callable]]:
    init_default_scope('mmdet')
    ours = load_config(config, {'model.backbone.init_cfg': None}).model
    stock = ConfigDict(ours, type='MaskRCNN')
    blocks = load_config(config, {'model.backbone.init_cfg': None}, 'gc').model
    networks = {}
    for name, cfg in dict(stock=stock, ours=ours).items():
        torch.manual_seed(0)
        networks[name] = MODELS.build(cfg)
    torch.manual_seed(0)
    networks['hooked'] = MODELS.build(stock)
    placements = dict(position='before_add'), dict(at='neck.fpn_convs.*')
    count = len(insert(networks['hooked'], [dict(cfg=dict(type=_NoOp), **p) for p in placements]))
    no_ops = f'{count} plugins that do nothing'
    return [
        ('build Mask R-CNN; with global context in c3-c5', _build(stock), _build(blocks)),
        *(
            (f'{kind}, Mask R-CNN; {variant}', run(networks['stock']), run(networks[name]))
            for name, variant in dict(hooked=no_ops, ours="mmattn's without plugins").items()
            for kind, run in {'inference': _inference, 'training step': _training}.items()
        ),
    ]


def _build(cfg: dict) -> Callable[[], None]:
    return lambda: MODELS.build(cfg)


def _inference(model: nn.Module) -> Callable[[], None]:
    image = torch.randn(1, 3, *_IMAGE, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def run() -> None:
        model.eval()
        model(image, [_sample()], mode='tensor')

    return run


def _training(model: nn.Module) -> Callable[[], None]:
    image = torch.randn(1, 3, *_IMAGE, generator=torch.Generator().manual_seed(0))

    def run() -> None:
        model.train()
        model.zero_grad()
        loss(model, image).backward()

    return run


def loss(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Sum of the losses for a batch of images, (N, 3, H, W), with four boxes each."""
    torch.manual_seed(0)  # samplers are random
    samples = [_sample(*image.shape[2:]).to(image.device) for _ in image]
    return model.parse_losses(model(image, samples, mode='loss'))[0]


def _sample(height: int = _IMAGE[0], width: int = _IMAGE[1]) -> DetDataSample:
    """An annotated image with four boxes and their masks."""
    boxes = torch.tensor(
        [[20, 20, 90, 120], [100, 40, 180, 90], [30, 130, 160, 230], [200, 60, 300, 240.0]]
    )
    boxes *= torch.tensor([width, height, width, height]) / torch.tensor(2 * _IMAGE[::-1])
    masks = np.zeros((len(boxes), height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
        mask[y1:y2, x1:x2] = 1
    size = height, width
    meta = dict(
        img_shape=size,
        ori_shape=size,
        pad_shape=size,
        batch_input_shape=size,
        scale_factor=(1.0, 1.0),
    )
    sample = DetDataSample(metainfo=meta)
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.arange(4), masks=BitmapMasks(masks, height, width)
    )
    return sample
