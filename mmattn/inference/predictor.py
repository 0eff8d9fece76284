"""A trained network applied to images in files and in memory."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch import nn

from mmattn.config.leaves import dataset_leaves
from mmattn.datasets.loading import ImageReader, Loaded, to_display
from mmattn.engine.network import build_model, dataset_meta
from mmattn.errors import DataError, UsageError, explain
from mmattn.plugins.dry_run import input_channels
from mmattn.visualization.objects import palette_of

if TYPE_CHECKING:
    from mmengine.structures import BaseDataElement


# What a network raises whose parts do not fit each other or the image.
_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


class CannotRun(UsageError):
    """A network fails on an image: the config is wrong, or the image is too small for it."""


class Predictor:
    """A detector or segmentor with the loader and the test pipeline of its config.

    Example:
        predictor = Predictor.of('configs/ccnet_r18_street.py', 'best.pth')
        labels = predictor('photo.jpg').pred_sem_seg.data[0]

    A path is read by the config's own loading step. An array is taken as that step would have given
    it: (H, W, 3) uint8 BGR by default; (H, W) where the config reads gray images.

    Args:
        model: in eval mode, on its device.
        cfg: its config.

    Attributes:
        classes, palette: names and RGB colours of the classes.
        segments: whether it labels pixels; otherwise it detects objects.
        reader: the steps of the pipeline.
        channels: of the images that the network takes.
        suffix: of the images of the test data, where the config names it.
    """

    def __init__(self, model: nn.Module, cfg: Config) -> None:
        self.model, self.cfg = model, cfg
        self.segments = hasattr(model, 'decode_head')
        meta = dataset_meta(cfg)
        self.classes, self.palette = meta['classes'], palette_of(meta)
        self.channels = input_channels(model)
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        leaf = next(dataset_leaves(cfg.test_dataloader['dataset']))
        self.suffix = leaf.get('img_suffix') or ''
        self.reader = ImageReader(leaf.get('pipeline') or [], _common(leaf, meta, self.segments))

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

    def load(self, image: np.ndarray | str | Path) -> Loaded:
        """An image as the config's loader gives it.

        Raises:
            DataError: it cannot be read, or is not what the loader gives.
        """
        if isinstance(image, str | Path):
            return self.reader.load(image)
        return self.reader.of_array(image)

    def prepare(self, image: np.ndarray | str | Path | Loaded) -> dict:
        """What `predict` takes.

        Raises:
            DataError: the image cannot be read, or is none that the network can take.
        """
        what = f'image {image}' if isinstance(image, str | Path) else 'the image'
        loaded = image if isinstance(image, Loaded) else self.load(image)
        prepared = self.reader.prepare(loaded, what)
        inputs = prepared['inputs']
        if isinstance(inputs, torch.Tensor) and len(inputs) != self.channels:
            path = loaded.results.get('img_path')
            raise DataError(
                f'image {path or "in memory"} has {len(inputs)} channel'
                f'{"s" if len(inputs) > 1 else ""} as the config reads it, the network takes '
                f'{self.channels}.'
            )
        return prepared

    def show(self, loaded: Loaded) -> np.ndarray:
        """An image as (H, W, 3) uint8 BGR to draw on."""
        return to_display(loaded.image, self.reader.rgb)

    @torch.no_grad()
    def predict(self, prepared: dict) -> 'BaseDataElement':
        """-> a sample with `pred_sem_seg` or `pred_instances`, in the size of the image.

        Raises:
            CannotRun: the network fails.
        """
        try:
            return self.model.test_step(pseudo_collate([prepared]))[0]
        except _FAILURES as error:
            if explain(error):  # such as out of memory
                raise
            inputs = prepared['inputs']
            size = (
                'x'.join(map(str, reversed(inputs.shape[-2:]))) if hasattr(inputs, 'shape') else ''
            )
            why = (str(error).strip() or 'no reason given').splitlines()[0]
            raise CannotRun(
                f'{self.cfg.filename}: the network fails on an image of {size} as the config '
                f'prepares it: {type(error).__name__}: {why}'
            ) from error

    def __call__(self, image: np.ndarray | str | Path) -> 'BaseDataElement':
        return self.predict(self.prepare(image))


def _common(leaf: dict, meta: dict, segments: bool) -> dict:
    """What a data set of mmseg or mmdet says of each image besides its path."""
    known = {key: meta[key] for key in ('label_map', 'reduce_zero_label') if key in meta}
    if segments:
        return known | dict(seg_fields=[])
    if leaf.get('return_classes'):  # networks that are asked for classes by name
        return known | dict(text=meta['classes'], custom_entities=True)
    return known
