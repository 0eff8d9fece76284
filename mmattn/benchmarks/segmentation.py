"""Benchmark of segmentor testing without the network: MMSegmentation and mmattn, alternating."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmseg.evaluation import IoUMetric as StockIoUMetric
from mmseg.models import EncoderDecoder as StockEncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from mmattn.evaluation.iou import areas, confusion
from mmattn.files import check_writable
from mmattn.models.slide_inference import SegmentorInference

from .machine import describe_in_words, describe_machine
from .report import cell
from .timing import ResultsDiffer, min_times, peak_bytes

_SIZE = (1024, 2048)  # height and width of an image, as in Cityscapes
_WINDOWS = dict(mode='slide', crop_size=(769, 769), stride=(513, 513))
_CLASSES = (19, 150)  # Cityscapes, ADE20K
_PATCH = 16  # pixels: side of the areas of one class, as label maps are not noise


@dataclass(frozen=True)
class SegmentationTiming:
    """One comparison: times in ms, the shortest of all rounds, and memory in bytes.

    Attributes:
        task: task that was timed.
        ours, mmseg: time of the task.
        peak, mmseg_peak: peak of the memory that torch allocates; None where NumPy does the work.
    """

    task: str
    ours: float
    mmseg: float
    peak: int | None
    mmseg_peak: int | None


class _PrecomputedNetwork:
    """A network that returns precomputed logits: two windows, alternating."""

    align_corners = True
    decode_head = SimpleNamespace(threshold=0.3)

    def __init__(self, test_cfg: dict, classes: int) -> None:
        self.test_cfg, self.out_channels = ConfigDict(test_cfg), classes
        generator = torch.Generator().manual_seed(0)
        crop = test_cfg['crop_size']
        self.logits = [torch.randn(1, classes, *crop, generator=generator) for _ in range(2)]
        self.calls = 0

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        self.calls += 1
        return self.logits[self.calls % 2]


class _Stock(_PrecomputedNetwork):
    slide_inference = StockEncoderDecoder.slide_inference
    postprocess_result = StockEncoderDecoder.postprocess_result


class _Ours(SegmentorInference, _PrecomputedNetwork):
    pass


def report_segmentation(
    rounds: int, json_path: str | Path | None = None
) -> list[SegmentationTiming]:
    """Print what testing a segmentor costs without its network; optionally write it as JSON.

    Args:
        rounds: how often both are timed, alternating; the shortest time counts.
        json_path: JSON file for the figures.

    Raises:
        ResultsDiffer: the two compute different results.
        WriteError: the file cannot be written.
    """
    if json_path:
        check_writable(Path(json_path).parent, '--json')
    torch.set_num_threads(1)
    machine = describe_machine()
    print(describe_in_words(machine))
    height, width = _SIZE
    print(f'{width}x{height}, best of {rounds} rounds; x: mmseg over ours')
    print(f'{"task":<44}' + ''.join(f'{name:>12}{"x":>7}' for name in ('ms', 'peak MB')))
    timings = []
    for task, ours, mmseg, in_torch in _comparisons():
        timing = _measure(task, ours, mmseg, rounds, in_torch)
        timings.append(timing)
        memory = f'{"-":>12}{"-":>7}'
        if in_torch:
            memory = cell((timing.peak / 1e6, timing.mmseg_peak / 1e6))
        print(f'{task:<44}{cell((timing.ours, timing.mmseg))}{memory}')
    if json_path:
        content = dict(machine=machine, rounds=rounds, rows=[asdict(timing) for timing in timings])
        Path(json_path).write_text(json.dumps(content, indent=1), encoding='utf-8')
    return timings


@torch.no_grad()
def _measure(
    task: str, ours: Callable, mmseg: Callable, rounds: int, in_torch: bool
) -> SegmentationTiming:
    for our_output, mmseg_output in zip(ours(), mmseg(), strict=True):
        if not torch.equal(our_output, mmseg_output):
            raise ResultsDiffer(f'{task}: mmattn differs from MMSegmentation.')
    times = min_times(rounds, ours, mmseg)
    memory = [peak_bytes(f) for f in (ours, mmseg)] if in_torch else (None, None)
    return SegmentationTiming(task, *times, *memory)


def _comparisons() -> Iterator[tuple[str, Callable, Callable, bool]]:
    """Tasks: name, our function, mmseg's function, whether torch allocates all the memory."""
    for classes in _CLASSES:
        networks = [kind(test_cfg=_WINDOWS, classes=classes) for kind in (_Ours, _Stock)]
        yield f'slide inference, {classes} classes', *map(_slide, networks), True
        logits = torch.randn(1, classes, *_SIZE, generator=torch.Generator().manual_seed(0))
        runs = [_postprocess(network, logits) for network in networks]
        del networks
        yield f'logits to a map of classes, {classes} classes', *runs, True
        del logits, runs
        for kind in torch.int64, torch.uint8:
            name = f'intersection and union, {classes} classes, {str(kind)[6:]}'
            yield name, *_iou(classes, kind), False


def _slide(network: _PrecomputedNetwork) -> Callable[[], list[Tensor]]:
    image = torch.zeros(1, 3, *_SIZE)
    return lambda: [network.slide_inference(image, [dict(img_shape=_SIZE)])]


def _postprocess(network: _PrecomputedNetwork, logits: Tensor) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        sample = SegDataSample(metainfo=dict(ori_shape=_SIZE, img_shape=_SIZE))
        network.postprocess_result(logits, [sample])
        return [sample.seg_logits.data, sample.pred_sem_seg.data]

    return run


def _iou(classes: int, kind: torch.dtype) -> tuple[Callable[[], Any], Callable[[], Any]]:
    generator = torch.Generator().manual_seed(0)
    small = [side // _PATCH for side in _SIZE]
    label, other = torch.randint(classes, (2, *small), generator=generator)
    wrong, ignored = torch.rand(2, *small, generator=generator) < 0.1
    prediction = torch.where(wrong, other, label)
    label[ignored] = 255
    prediction, label = (
        m.repeat_interleave(_PATCH, 0).repeat_interleave(_PATCH, 1).to(kind)
        for m in (prediction, label)
    )

    def ours() -> list[Tensor]:
        return [torch.from_numpy(a) for a in areas(confusion(prediction, label, classes))]

    def mmseg() -> list[Tensor]:
        histograms = StockIoUMetric.intersect_and_union(prediction, label, classes, 255)
        return [a.long() for a in histograms]  # whole numbers that fp32 holds exactly

    return ours, mmseg
