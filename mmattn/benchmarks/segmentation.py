"""What a segmentor's test costs beside its network: MMSegmentation and mmattn in turn."""

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

from .report import cell
from .timing import Unequal, least, machine, peak

_SIZE = (1024, 2048)  # height and width of the image, as of Cityscapes
_WINDOWS = dict(mode='slide', crop_size=(769, 769), stride=(513, 513))
_CLASSES = (19, 150)  # of Cityscapes and ADE20K
_BLOCK = 16  # pixels: sides of the areas of one class, as maps are no noise


@dataclass(frozen=True)
class Row:
    """One comparison: ms, the least of all rounds, and bytes.

    Attributes:
        what: what was done.
        ours, mmseg: its time.
        peak, mmseg_peak: most memory at once that torch allocated; None where NumPy does the work.
    """

    what: str
    ours: float
    mmseg: float
    peak: int | None
    mmseg_peak: int | None


class _Costless:
    """A network whose logits are there before it is asked: two windows of them, in turn."""

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


class _Stock(_Costless):
    slide_inference = StockEncoderDecoder.slide_inference
    postprocess_result = StockEncoderDecoder.postprocess_result


class _Ours(SegmentorInference, _Costless):
    pass


def report_segmentation(rounds: int, json_path: str | Path | None = None) -> list[Row]:
    """Print, and write to a JSON file if asked, what tests of segmentors cost beside networks.

    Args:
        rounds: both in turn, as often; the least time counts.
        json_path: a file for the figures.

    Raises:
        Unequal: the two compute different things, so their times mean nothing.
        WriteError: the file cannot be written.
    """
    if json_path:
        check_writable(Path(json_path).parent, '--json')
    torch.set_num_threads(1)
    about = machine()
    print(', '.join(f'{key} {value}' for key, value in about.items()))
    height, width = _SIZE
    print(f'{width}x{height}, least of {rounds} rounds; x: mmseg over ours')
    print(f'{"what":<44}' + ''.join(f'{name:>12}{"x":>7}' for name in ('ms', 'peak MB')))
    rows = []
    for what, ours, mmseg, in_torch in _comparisons():
        row = _measure(what, ours, mmseg, rounds, in_torch)
        rows.append(row)
        memory = cell((row.peak / 1e6, row.mmseg_peak / 1e6)) if in_torch else f'{"-":>12}{"-":>7}'
        print(f'{what:<44}{cell((row.ours, row.mmseg))}{memory}')
    if json_path:
        content = dict(machine=about, rounds=rounds, rows=[asdict(row) for row in rows])
        Path(json_path).write_text(json.dumps(content, indent=1), encoding='utf-8')
    return rows


@torch.no_grad()
def _measure(what: str, ours: Callable, mmseg: Callable, rounds: int, in_torch: bool) -> Row:
    for mine, other in zip(ours(), mmseg(), strict=True):
        if not torch.equal(mine, other):
            raise Unequal(f'{what}: mmattn differs from MMSegmentation.')
    times = least(rounds, ours, mmseg)
    memory = [peak(f) for f in (ours, mmseg)] if in_torch else (None, None)
    return Row(what, *times, *memory)


def _comparisons() -> Iterator[tuple[str, Callable, Callable, bool]]:
    """What is compared: a name, ours and mmseg's as functions, whether all memory is torch's."""
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


def _slide(network: _Costless) -> Callable[[], list[Tensor]]:
    image = torch.zeros(1, 3, *_SIZE)
    return lambda: [network.slide_inference(image, [dict(img_shape=_SIZE)])]


def _postprocess(network: _Costless, logits: Tensor) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        sample = SegDataSample(metainfo=dict(ori_shape=_SIZE, img_shape=_SIZE))
        network.postprocess_result(logits, [sample])
        return [sample.seg_logits.data, sample.pred_sem_seg.data]

    return run


def _iou(classes: int, kind: torch.dtype) -> tuple[Callable[[], Any], Callable[[], Any]]:
    generator = torch.Generator().manual_seed(0)
    small = [side // _BLOCK for side in _SIZE]
    label, other = torch.randint(classes, (2, *small), generator=generator)
    wrong, ignored = torch.rand(2, *small, generator=generator) < 0.1
    prediction = torch.where(wrong, other, label)
    label[ignored] = 255
    prediction, label = (
        m.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1).to(kind)
        for m in (prediction, label)
    )

    def ours() -> list[Tensor]:
        return [torch.from_numpy(a) for a in areas(confusion(prediction, label, classes))]

    def mmseg() -> list[Tensor]:
        found = StockIoUMetric.intersect_and_union(prediction, label, classes, 255)
        return [a.long() for a in found]  # of whole numbers that fp32 still holds

    return ours, mmseg
