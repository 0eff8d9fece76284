"""Sliding-window inference: MMSegmentation's results in less time and memory.

Reference code: open-mmlab/mmsegmentation, mmseg/models/segmentors/encoder_decoder.py and base.py.
Differs from it in: a window is added where it lies, not as a map of the whole image; the count of
windows over a pixel is a product of rows and columns; maps of the right size are not resized.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from mmengine.structures import PixelData
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from torch import Tensor

_MODES = ('whole', 'slide')
_FLIPS = dict(horizontal=(2,), vertical=(1,), diagonal=(1, 2))  # dimensions of (C, H, W)
_BLOCK = 1 << 17  # pixels that are classified at a time, which fit into the cache


@dataclass(frozen=True)
class Sliding:
    """Placement of windows over an image: at every stride, the last ones moved back to the edge.

    Attributes:
        crop_size, stride: (height, width) in pixels; a side of the image that is shorter than the
            window is taken whole.
        window_batch: number of windows per batch of the network. Convolutions may then sum in
            another order, which can change the last bits of logits.
    """

    crop_size: tuple[int, int]
    stride: tuple[int, int]
    window_batch: int = 1

    @classmethod
    def of(cls, test_cfg: dict) -> 'Sliding':
        """Read a segmentor's `test_cfg`.

        Raises:
            ValueError: a value is missing or no whole number from 1; a stride exceeds crop_size.
        """
        for name in 'crop_size', 'stride':
            value = test_cfg.get(name)
            if value is None:
                raise ValueError(f"test_cfg: no {name}, which mode='slide' needs: (height, width)")
            if not (isinstance(value, Sequence) and len(value) == 2 and all(map(_is_count, value))):
                raise ValueError(f'test_cfg: {name}={value!r}, allowed are two numbers from 1')
        crop_size, stride = tuple(test_cfg['crop_size']), tuple(test_cfg['stride'])
        if any(step > side for step, side in zip(stride, crop_size)):
            raise ValueError(
                f'test_cfg: {stride=} leaves holes between windows of {crop_size=}; '
                'allowed is up to crop_size'
            )
        return cls(crop_size, stride, _window_batch(test_cfg))


def check_test_cfg(test_cfg: dict | None) -> None:
    """Check a `test_cfg`.

    Raises:
        ValueError: an unknown mode, or what `Sliding.of` refuses.
    """
    test_cfg = test_cfg or {}
    mode = test_cfg.get('mode', 'whole')
    if mode not in _MODES:
        raise ValueError(f'test_cfg: {mode=}, allowed {", ".join(map(repr, _MODES))}')
    if mode == 'slide':
        Sliding.of(test_cfg)
    _window_batch(test_cfg)


def _window_batch(test_cfg: dict) -> int:
    batch = test_cfg.get('window_batch', 1)
    if not _is_count(batch):
        raise ValueError(f'test_cfg: window_batch={batch!r}, allowed are whole numbers from 1')
    return batch


def _is_count(value: object) -> bool:
    """Whether a value is a whole number from 1; a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def slide(
    images: Tensor, network: Callable[[Tensor], Tensor], channels: int, sliding: Sliding
) -> Tensor:
    """The mean over windows of the outputs of a network, for each pixel of images.

    Args:
        images: (N, C, H, W).
        network: (M, C, h, w) -> (M, channels, h, w), M a multiple of N, window by window.
        channels: channels of the result.
        sliding: placement of the windows.

    Returns:
        (N, channels, H, W) of the images' dtype.
    """
    height, width = images.shape[2:]
    rows = _spans(height, sliding.crop_size[0], sliding.stride[0])
    columns = _spans(width, sliding.crop_size[1], sliding.stride[1])
    windows = list(product(rows, columns))
    total = images.new_zeros(len(images), channels, height, width)
    for start in range(0, len(windows), sliding.window_batch):
        batch = windows[start : start + sliding.window_batch]
        crops = [images[:, :, y, x] for y, x in batch]
        _add(total, batch, network(torch.cat(crops) if len(crops) > 1 else crops[0]))
    down, across = _cover(rows, height).to(total), _cover(columns, width).to(total)
    return total.div_(down[:, None] * across)  # a product with the inverse would change bits


def _spans(length: int, side: int, step: int) -> list[slice]:
    """Extents of windows along one side of an image."""
    ends = [min(i * step + side, length) for i in range(-(-max(length - side, 0) // step) + 1)]
    return [slice(max(end - side, 0), end) for end in ends]


def _cover(spans: list[slice], length: int) -> Tensor:
    """Number of windows over each row or column."""
    count = torch.zeros(length, dtype=torch.int64)
    for span in spans:
        count[span] += 1
    return count


def _add(total: Tensor, windows: list[tuple[slice, slice]], logits: Tensor) -> None:
    for (y, x), window_logits in zip(windows, logits.split(len(total)), strict=True):
        total[:, :, y, x].add_(window_logits)


def class_map(scores: Tensor) -> Tensor:
    """`scores.argmax(0, keepdim=True)`, (C, H, W) -> (1, H, W), several times faster on a CPU."""
    classes, height, width = scores.shape
    if not scores.is_cpu or classes > 256 or not scores.numel():
        return scores.argmax(0, keepdim=True)
    classes_map = torch.empty(1, height, width, dtype=torch.int64)
    step = max(1, _BLOCK // width)
    for start in range(0, height, step):
        block = scores.detach()[:, start : start + step]
        best = block[0].clone()
        index = torch.zeros(best.shape, dtype=torch.uint8)
        better = torch.empty(best.shape, dtype=torch.bool)
        for i in range(1, classes):
            torch.gt(block[i], best, out=better)
            torch.maximum(index, better.view(torch.uint8) * i, out=index)
            torch.maximum(best, block[i], out=best)
        has_nan = best.isnan().any()  # NaN is the largest value to argmax, and to gt never larger
        classes_map[0, start : start + step] = block.argmax(0) if has_nan else index
    return classes_map


class SegmentorInference:
    """Mixin: faster inference for a segmentor of MMSegmentation; comes before it in the bases.

    With `window_batch` 1, results from finite logits equal those of MMSegmentation bit by bit.

    Args:
        test_cfg: `mode`, 'whole' or 'slide'; for the latter `crop_size` and `stride`, each (height,
            width), and `window_batch`, see `Sliding`.
        **kwargs: arguments of the segmentor.

    Raises:
        ValueError: a value of test_cfg that is not allowed or missing.
    """

    def __init__(self, *, test_cfg: dict | None = None, **kwargs) -> None:
        check_test_cfg(test_cfg)
        super().__init__(test_cfg=test_cfg, **kwargs)

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """The logits of images, (N, C, H, W) -> (N, out_channels, H, W)."""

        def network(crops: Tensor) -> Tensor:
            # heads resize to `img_shape`, here a torch.Size, that of the window
            metas = [dict(meta, img_shape=crops.shape[2:]) for meta in batch_img_metas]
            return self.encode_decode(crops, metas * (len(crops) // len(inputs)))

        return slide(inputs, network, self.out_channels, Sliding.of(self.test_cfg))

    def postprocess_result(
        self, seg_logits: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Put logits, in the original size of images, and classes into samples."""
        if data_samples is None:
            data_samples = [SegDataSample() for _ in seg_logits]
        for logits, sample in zip(seg_logits, data_samples, strict=True):
            logits = self._restore(logits, sample.metainfo)
            if len(logits) > 1:
                classes = class_map(logits)
            else:
                logits = logits.sigmoid()
                classes = (logits > self.decode_head.threshold).to(logits)
            data = dict(seg_logits=PixelData(data=logits), pred_sem_seg=PixelData(data=classes))
            sample.set_data(data)
        return data_samples

    def _restore(self, logits: Tensor, meta: dict) -> Tensor:
        """Undo the padding, flip and resize of an image, (C, H, W) -> (C, *ori_shape)."""
        height, width = logits.shape[1:]
        padding = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
        left, right, top, bottom = padding
        logits = logits[:, top : height - bottom, left : width - right]
        if meta.get('flip'):
            logits = logits.flip(_FLIPS[meta['flip_direction']])
        size = tuple(meta.get('ori_shape', logits.shape[1:]))
        if size != tuple(logits.shape[1:]):
            options = dict(mode='bilinear', align_corners=self.align_corners, warning=False)
            return resize(logits[None], size=size, **options)[0]
        if logits.untyped_storage().nbytes() > logits.numel() * logits.element_size():
            return logits.clone()  # a view would keep the whole batch alive
        return logits
