"""A trained network applied to images that are in memory."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from torch import nn

from mmattn.visualization.objects import palette_of

from .config import dataset_leaves
from .runner import build_model, dataset_meta

if TYPE_CHECKING:
    from mmengine.structures import BaseDataElement


class Predictor:
    """A detector or segmentor with the test pipeline of its config.

    Example:
        predictor = Predictor.of('configs/ccnet_r18_street.py', 'best.pth')
        labels = predictor(cv2.imread('photo.jpg')).pred_sem_seg.data[0]

    Args:
        model: in eval mode, on its device.
        cfg: its config.

    Attributes:
        classes, palette: names and RGB colours of the classes.
        segments: whether it labels pixels; otherwise it detects objects.
    """

    def __init__(self, model: nn.Module, cfg: Config) -> None:
        self.model, self.cfg = model, cfg
        self.segments = hasattr(model, 'decode_head')
        meta = dataset_meta(cfg)
        self.classes, self.palette = meta['classes'], palette_of(meta)
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        leaf = next(dataset_leaves(cfg.test_dataloader['dataset']))
        self.pipeline = Compose([*_of_arrays(leaf['pipeline'])])

    @classmethod
    def of(
        cls,
        config: str | Path,
        checkpoint: str | Path,
        options: dict | list[str] | None = None,
        attention: str | None = None,
        device: str | None = None,
    ) -> 'Predictor':
        """Build config and checkpoint as `build_model` does."""
        return cls(*build_model(config, checkpoint, options, attention, device))

    def prepare(self, image: np.ndarray) -> dict:
        """(H, W, 3) uint8 BGR -> what `predict` takes."""
        return self.pipeline(dict(img=image, img_id=0))

    @torch.no_grad()
    def predict(self, prepared: dict) -> 'BaseDataElement':
        """-> a sample with `pred_sem_seg` or `pred_instances`, in the size of the image."""
        return self.model.test_step(pseudo_collate([prepared]))[0]

    def __call__(self, image: np.ndarray) -> 'BaseDataElement':
        return self.predict(self.prepare(image))


def _of_arrays(steps: list[dict]) -> list[dict]:
    """A test pipeline for images in memory, of which nothing true is known."""
    found = []
    for step in steps:
        scope, _, kind = step['type'].rpartition('.')
        if kind == 'LoadImageFromFile':
            array = '.'.join(filter(None, (scope, 'LoadImageFromNDArray')))
            found.append(dict(step, type=array))
        elif not kind.startswith('Load'):
            found.append(step)
    return found
