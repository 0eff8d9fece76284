"""Training data that are generated, for benchmarks of configs whose data are not there."""

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch.utils.data import Dataset

from mmattn.registry import DATASETS

_LENGTH = 1000
_BOXES = ((20, 20, 90, 120), (100, 40, 180, 90), (30, 130, 160, 230), (200, 60, 300, 240))
_OF = (320, 256)  # width and height that the boxes are of
_PATCH = 16  # pixels: side of the areas of one class


def generated_loader(cfg: Config, size: tuple[int, int], classes: int) -> dict:
    """A data loader's config for a training config: images of noise with boxes or label maps.

    Args:
        cfg: the config.
        size: H and W.
        classes: number of classes of the heads.
    """
    by_epoch = not cfg.train_cfg.get('max_iters')
    sampler = dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=False)
    boxes = cfg.default_scope == 'mmdet'
    dataset = dict(type='mmattn.GeneratedImages', size=size, classes=classes, boxes=boxes)
    return dict(
        _delete_=True,
        batch_size=cfg.train_dataloader.batch_size,
        num_workers=0,
        sampler=sampler,
        dataset=dataset,
    )


@DATASETS.register_module()
class GeneratedImages(Dataset):
    """Images of noise, each with four boxes and their masks, or with a label map of patches.

    Args:
        size: H and W.
        classes: number of classes.
        boxes: whether they are for detectors.
    """

    def __init__(self, size: tuple[int, int], classes: int, boxes: bool) -> None:
        self.size, self.classes, self.boxes = tuple(size), classes, boxes
        self.metainfo = dict(classes=tuple(f'class {index}' for index in range(classes)))

    def __len__(self) -> int:
        return _LENGTH

    def full_init(self) -> None:
        """Nothing is loaded."""

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(256, (3, *self.size), dtype=torch.uint8, generator=generator)
        return dict(inputs=image, data_samples=self._sample(generator))

    def _sample(self, generator: torch.Generator) -> DetDataSample | SegDataSample:
        meta = dict(img_shape=self.size, ori_shape=self.size, scale_factor=(1.0, 1.0))
        if self.boxes:
            return self._objects(meta)
        patches = [-(-side // _PATCH) for side in self.size]
        labels = torch.randint(self.classes, patches, generator=generator)
        labels = labels.repeat_interleave(_PATCH, 0).repeat_interleave(_PATCH, 1)
        labels = labels[: self.size[0], : self.size[1]].contiguous()
        return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels[None]))

    def _objects(self, meta: dict) -> DetDataSample:
        height, width = self.size
        scale = torch.tensor([width, height, width, height]) / torch.tensor(2 * _OF)
        boxes = torch.tensor(_BOXES, dtype=torch.float32) * scale
        masks = np.zeros((len(boxes), height, width), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1:x2] = 1
        sample = DetDataSample(metainfo=meta)
        labels = torch.arange(len(boxes)) % self.classes
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=labels, masks=BitmapMasks(masks, height, width)
        )
        return sample
