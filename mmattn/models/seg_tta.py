"""Test-time augmentation over scales and flips: the mean of class probabilities, and its pipeline.

Reference code: open-mmlab/mmsegmentation, mmseg/models/segmentors/seg_tta.py. Differs from it in:
one augmentation is in memory at a time, not all; a network of one class returns probabilities,
which get no second sigmoid; the result has no logits or sizes of a single augmentation.
"""

from collections.abc import Iterable, Iterator, Sequence

from mmengine.model import BaseTTAModel
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

from mmattn.registry import MODELS

from .slide_inference import class_map

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # as in MMSegmentation's `tta_pipeline`
_REQUIRED, _OPTIONAL = {'LoadImageFromFile', 'PackSegInputs'}, {'Resize', 'LoadAnnotations'}
_PREDICTED = {'seg_logits', 'pred_sem_seg'}
_SIZES = {'img_shape', 'pad_shape', 'img_padding_size', 'padding_size', 'scale_factor'}
_AUGMENTATION_META = _SIZES | {'flip', 'flip_direction'}  # true of one augmentation only


@MODELS.register_module()
class SegTTAModel(BaseTTAModel):
    """The mean over augmentations of a segmentor's softmax, or of its sigmoid for one class.

    Each merged sample has `pred_sem_seg`, (1, H, W), and the mean as `seg_probs`, (C, H, W).

    Args:
        module: the segmentor or its config.
        data_preprocessor: preprocessor of the segmentor, if its config has none.
    """

    def test_step(self, data: dict | tuple | list) -> list[SegDataSample]:
        """Merged predictions of a batch, whose entries are lists with one item per augmentation."""
        return self._mean(map(self.module.test_step, _augmentations(data)))

    def merge_preds(self, data_samples_list: Sequence[Sequence]) -> list[SegDataSample]:
        """Merge the predictions of all augmentations of each image."""
        return self._mean(zip(*data_samples_list, strict=True))

    def _mean(self, predictions: Iterable[Sequence[SegDataSample]]) -> list[SegDataSample]:
        """Merge predictions augmentation by augmentation, each with one sample per image."""
        merged, sums, count = [], [], 0
        for samples in predictions:
            if not count:
                merged = [_common(sample) for sample in samples]
            self._add(sums, samples)
            count += 1
            del samples  # free their logits before the network runs again
        for sample, total in zip(merged, sums, strict=True):
            total /= count
            sample.seg_probs = PixelData(data=total)
            sample.pred_sem_seg = PixelData(data=self._classes(total))
        return merged

    def _add(self, sums: list[Tensor], samples: Sequence[SegDataSample]) -> None:
        """Add the probabilities of each image to its sum; `sums` is empty at first."""
        if not sums:
            sums += [self._probabilities(sample) for sample in samples]
            return
        for total, sample in zip(sums, samples, strict=True):
            total += self._probabilities(sample)

    def _probabilities(self, sample: SegDataSample) -> Tensor:
        logits = sample.seg_logits.data
        return logits.softmax(0) if self.module.out_channels > 1 else logits.clone()

    def _classes(self, probabilities: Tensor) -> Tensor:
        if self.module.out_channels > 1:
            return class_map(probabilities)
        return (probabilities > self.module.decode_head.threshold).to(probabilities)


def _augmentations(data: dict | tuple | list) -> Iterator[dict | list]:
    """The batch of each augmentation, from a batch with a list of them in every entry."""
    if isinstance(data, dict):
        for values in zip(*data.values(), strict=True):
            yield dict(zip(data, values, strict=True))
    else:
        yield from map(list, zip(*data, strict=True))


def _common(sample: SegDataSample) -> SegDataSample:
    """A sample with what all augmentations share: ground truth and origin."""
    meta = {key: value for key, value in sample.metainfo_items() if key not in _AUGMENTATION_META}
    data = {key: value for key, value in sample.items() if key not in _PREDICTED}
    return SegDataSample(metainfo=meta, **data)


def tta_pipeline(test_pipeline: Sequence[dict]) -> list[dict]:
    """The pipeline for test-time augmentation: a test pipeline at all `SCALES`, plain and flipped.

    Scales are relative to the image in the test pipeline, after its Resize if there is one.

    Raises:
        ValueError: the test pipeline has other steps than LoadImageFromFile, Resize,
            LoadAnnotations and PackSegInputs, has one twice, or lacks the first or the last.
    """
    names = [step['type'].split('.')[-1] for step in test_pipeline]
    steps = dict(zip(names, test_pipeline))
    if len(steps) < len(names) or set(steps) - _OPTIONAL != _REQUIRED:
        raise ValueError(
            f'no scales and flips for a test pipeline of {", ".join(names)}: known are '
            'LoadImageFromFile, Resize, LoadAnnotations, PackSegInputs, each once. '
            'Write a tta_pipeline into the config'
        )
    pack = dict(steps['PackSegInputs'])
    if 'meta_keys' in pack:
        pack['meta_keys'] = tuple(dict.fromkeys((*pack['meta_keys'], 'flip', 'flip_direction')))
    choices = [
        [_scaled(steps.get('Resize'), scale) for scale in SCALES],
        [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)],
        [dict(steps[name]) for name in ('LoadAnnotations',) if name in steps],
        [pack],
    ]
    augment = dict(type='TestTimeAug', transforms=[choice for choice in choices if choice])
    return [dict(steps['LoadImageFromFile']), augment]


def _scaled(resize: dict | None, scale: float) -> dict:
    """A Resize to `scale` times the size of another; two in a row would blur."""
    if resize is None:
        return dict(type='Resize', scale_factor=scale, keep_ratio=True)
    size, factor = resize.get('scale'), resize.get('scale_factor')
    if size is not None:
        size = (size, size) if isinstance(size, int) else size
        return dict(resize, scale=tuple(max(1, round(side * scale)) for side in size))
    factor = (factor, factor) if isinstance(factor, int | float) else factor
    return dict(resize, scale_factor=tuple(side * scale for side in factor))
