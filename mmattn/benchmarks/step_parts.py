"""Benchmark of the parts of a training step, each next to what it replaces, alternating."""

import copy
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.models.decode_heads import FCNHead
from mmseg.structures import SegDataSample
from torch import Tensor

from mmattn.config.load import load_config
from mmattn.datasets.fast_pipeline import use_fast_steps
from mmattn.datasets.street import generate
from mmattn.datasets.write_cache import write_cache
from mmattn.engine.history import GrowingHistory
from mmattn.engine.resume.rng import seeded
from mmattn.errors import UsageError
from mmattn.files import check_writable
from mmattn.models.fused_losses import loss_by_feat
from mmattn.plugins import named_plugins

from .machine import describe_in_words, describe_machine
from .overhead import loss
from .timing import ResultsDiffer, kept_bytes, min_times, peak_bytes, release_memory

_LOSSES = ((19, (2, 64, 128), (512, 1024)), (150, (1, 64, 64), (512, 512)))  # classes, maps, labels
_STEPS, _NUMBERS = 160_000, 10  # of a history, and numbers logged in a step
_GATES = ('se', 'cbam', 'sa', 'sge')
_DETECTOR, _IMAGE = 'mask_rcnn_r50_coco', (800, 1344)
_SEGMENTOR, _SCENES, _SCENE, _NOISE = 'ccnet_r101_cityscapes', 8, (2048, 1024), 3.0


@dataclass(frozen=True)
class PartTiming:
    """One comparison: times in ms, the shortest of all rounds, and memory in bytes.

    Attributes:
        task: task that was timed.
        baseline: what it is compared with.
        ours, theirs: times of the task.
        memory, their_memory: peak bytes of the task, or those kept after a forward pass; None where
            nothing is allocated by torch.
    """

    task: str
    baseline: str
    ours: float
    theirs: float
    memory: int | None = None
    their_memory: int | None = None


def report_step(
    parts: Iterable[str], rounds: int, json_path: str | Path | None = None
) -> list[PartTiming]:
    """Print what parts of a training step take; optionally write it as JSON.

    Args:
        parts: some of `PARTS`, or none for all.
        rounds: how often both are timed, alternating; the shortest time counts.
        json_path: JSON file for the figures.

    Raises:
        UsageError: no such part.
        ResultsDiffer: the two compute different results.
        WriteError: the file cannot be written.
    """
    parts = list(parts) or list(PARTS)
    for name in parts:
        if name not in PARTS:
            raise UsageError(f'--step {name}: allowed are {", ".join(PARTS)}.')
    if json_path:
        check_writable(Path(json_path).parent, '--json')
    machine = describe_machine()
    print(describe_in_words(machine))
    print(f'best of {rounds} rounds; x: baseline over ours')
    print(f'{"task":<58}{"baseline":<12}{"its ms":>10}{"ms":>10}{"x":>7}{"its MB":>10}{"MB":>10}')
    timings = []
    for name in parts:
        for timing in PARTS[name](rounds):
            timings.append(timing)
            print(_line(timing), flush=True)
            release_memory()
    if json_path:
        content = dict(machine=machine, rounds=rounds, rows=[asdict(timing) for timing in timings])
        Path(json_path).write_text(json.dumps(content, indent=1), encoding='utf-8')
    return timings


def _line(timing: PartTiming) -> str:
    ratio = timing.theirs / timing.ours
    times = f'{timing.theirs:>10.3f}{timing.ours:>10.3f}{ratio:>7.2f}'
    memory = (timing.their_memory, timing.memory)
    shown = ''.join('         -' if n is None else f'{n / 1e6:>10.1f}' for n in memory)
    return f'{timing.task:<58}{timing.baseline:<12}{times}{shown}'


def _losses(rounds: int) -> Iterator[PartTiming]:
    """Upsampling, cross-entropy and accuracy of a decode head, forward and backward."""
    init_default_scope('mmseg')
    for classes, (n, *small), large in _LOSSES:
        generator = torch.Generator().manual_seed(0)
        logits = 3 * torch.randn(n, classes, *small, generator=generator)
        blocks = torch.randint(classes, (n, *(side // 8 for side in large)), generator=generator)
        labels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
        labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
        settings = dict(type='CrossEntropyLoss', avg_non_ignore=True)
        head = FCNHead(in_channels=8, channels=8, num_classes=classes, loss_decode=settings)

        def run(path: Callable, logits=logits, samples=samples, head=head) -> list[Tensor]:
            x = logits.clone().requires_grad_()
            losses = path(head, x, samples)
            losses['loss_ce'].backward()
            return [losses['loss_ce'], losses['acc_seg'], x.grad]

        paths = [partial(run, path) for path in (loss_by_feat, FCNHead.loss_by_feat)]
        for ours, theirs in zip(*(path() for path in paths), strict=True):
            if (ours - theirs).abs().max() > 1e-5 * theirs.abs().max():
                raise ResultsDiffer('losses: mmattn differs from MMSegmentation.')
        times = min_times(rounds, *paths)
        task = f'loss and accuracy, {classes} classes, {n}x{large[0]}x{large[1]}'
        yield PartTiming(task, 'mmseg', *times, *map(peak_bytes, paths))


def _history(rounds: int) -> Iterator[PartTiming]:
    """Numbers that are logged in one step, late in a training."""
    values = np.random.default_rng(0).random(_STEPS)
    kinds = GrowingHistory, HistoryBuffer
    histories = [[kind(values, np.ones(_STEPS)) for _ in range(_NUMBERS)] for kind in kinds]

    def run(buffers: list[HistoryBuffer]) -> list[float]:
        for buffer in buffers:
            buffer.update(0.5)
        return [buffer.mean(10) for buffer in buffers]

    for _ in range(20):
        ours, theirs = map(run, histories)
        if ours != theirs:
            raise ResultsDiffer('histories: mmattn differs from MMEngine.')
    times = min_times(20 * rounds, *(partial(run, buffers) for buffers in histories))
    yield PartTiming(f'{_NUMBERS} logged numbers at step {_STEPS:,}', 'mmengine', *times)


def _gates(rounds: int) -> Iterator[PartTiming]:
    """Steps of Mask R-CNN with gates that keep nothing, next to gates that keep what they need."""
    init_default_scope('mmdet')
    height, width = _IMAGE
    image = torch.randn(1, 3, *_IMAGE, generator=torch.Generator().manual_seed(0))
    for name in _GATES:
        ours = _detector(name)
        theirs = copy.deepcopy(ours)
        for _, block in named_plugins(theirs):
            block.plugin = replace(block.plugin, memory='keep')

        steps = [partial(_step, model, image) for model in (ours, theirs)]
        for a, b in zip(*(f() for f in steps), strict=True):
            if not torch.equal(a, b):
                raise ResultsDiffer(f'{name}: recomputed plugins differ from those that keep.')
        times = min_times(max(2, rounds // 2), *steps)
        kept = [kept_bytes(partial(loss, model, image)) for model in (ours, theirs)]
        task = f'Mask R-CNN R50 + {name}, step at {width}x{height}; kept for backward'
        yield PartTiming(task, "'keep'", *times, *kept)
    plain = _detector(None)
    kept = kept_bytes(partial(loss, plain, image))
    steps = [partial(_step, plain, image)] * 2
    yield PartTiming('the same without blocks', '(itself)', *min_times(2, *steps), kept, kept)


def _step(model: Any, image: Tensor) -> list[Tensor]:
    """The loss of a training step, and all gradients."""
    model.zero_grad()
    total = loss(model, image)
    total.backward()
    return [total.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def _samples(rounds: int) -> Iterator[PartTiming]:
    """Loading a sample in one process: from PNG by the stock steps, and from copies by ours."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / 'cityscapes'
        counts = dict(train=_SCENES, val=1, test=1)
        generate(root, images=counts, size=_SCENE, seed=0, overwrite=False)
        for path in sorted((root / 'leftImg8bit').rglob('*.png')):  # noise as of a camera
            image = cv2.imread(str(path)).astype(np.float32)
            noise = np.random.default_rng(0).normal(0, _NOISE, image.shape)
            cv2.imwrite(str(path), (image + noise).clip(0, 255).astype(np.uint8))
        write_cache('cityscapes', root, 'bmp', command='')
        cfg = load_config(_SEGMENTOR).train_dataloader.dataset
        cfg.data_root = str(root)
        init_default_scope('mmseg')
        ours, theirs = (DATASETS.build(dataset) for dataset in (use_fast_steps(cfg), cfg))

        def run(dataset: Any) -> list[Tensor]:
            with seeded(0):
                samples = [dataset[index] for index in range(_SCENES)]
            images = [sample['inputs'] for sample in samples]
            return images + [sample['data_samples'].gt_sem_seg.data.long() for sample in samples]

        for a, b in zip(run(ours), run(theirs), strict=True):
            if not torch.equal(a, b):
                raise ResultsDiffer('samples: mmattn differs from MMSegmentation.')
        times = min_times(rounds, partial(run, ours), partial(run, theirs))
        task = f'a sample of {_SEGMENTOR}, {_SCENE[0]}x{_SCENE[1]}'
        yield PartTiming(task, 'mmseg, PNG', *(ms / _SCENES for ms in times))


def _detector(attention: str | None) -> Any:
    model = load_config(_DETECTOR, {'model.backbone.init_cfg': None}, attention).model
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(model)).train()


PARTS: dict[str, Callable[[int], Iterator[PartTiming]]] = dict(
    loss=_losses, history=_history, samples=_samples, gates=_gates
)
