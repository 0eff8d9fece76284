"""Predictor: a trained network applied to images in files and in memory."""

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
from mmattn.visualization.palette import palette_of

if TYPE_CHECKING:
    from mmengine.structures import BaseDataElement


# raised by a network whose parts do not fit each other or the image
_NETWORK_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


class PredictionFailed(UsageError):
    """The network fails on an image: the config is wrong, or the image is too small."""


class Predictor:
    """A detector or segmentor with the loader and the test pipeline of its config.

    Example::

        predictor = Predictor.of('configs/ccnet_r18_street.py', 'best.pth')
        labels = predictor('photo.jpg').pred_sem_seg.data[0]

    A path is loaded by the config's own loading step. An array must be what that step returns:
    (H, W, 3) uint8 BGR by default; (H, W) if the config loads gray images.

    Args:
        model: network in eval mode, on its device.
        cfg: config of the network.

    Attributes:
        classes: names of the classes.
        palette: RGB colours of the classes.
        segments: True for a segmentor, False for a detector.
        reader: steps of the test pipeline.
        channels: number of channels of the images that the network takes.
        suffix: file suffix of the test images, if the config names one; else ''.
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
        self.reader = ImageReader(
            leaf.get('pipeline') or [], _sample_fields(leaf, meta, self.segments)
        )

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
        """Load an image with the config's loader.

        Raises:
            DataError: the image cannot be read, or is not what the loader returns.
        """
        if isinstance(image, str | Path):
            return self.reader.load(image)
        return self.reader.of_array(image)

    def prepare(self, image: np.ndarray | str | Path | Loaded) -> dict:
        """Run the test pipeline on an image; returns the input of `predict`.

        Raises:
            DataError: the image cannot be read, or the network cannot take it.
        """
        name = f'image {image}' if isinstance(image, str | Path) else 'the image'
        loaded = image if isinstance(image, Loaded) else self.load(image)
        prepared = self.reader.prepare(loaded, name)
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
        """The image as (H, W, 3) uint8 BGR, to draw on."""
        return to_display(loaded.image, self.reader.rgb)

    @torch.no_grad()
    def predict(self, prepared: dict) -> 'BaseDataElement':
        """Returns a sample with `pred_sem_seg` or `pred_instances`, in the size of the image.

        Raises:
            PredictionFailed: the network fails on the image.
        """
        try:
            return self.model.test_step(pseudo_collate([prepared]))[0]
        except _NETWORK_ERRORS as error:
            if explain(error):  # such as out of memory
                raise
            inputs = prepared['inputs']
            size = (
                'x'.join(map(str, reversed(inputs.shape[-2:]))) if hasattr(inputs, 'shape') else ''
            )
            reason = (str(error).strip() or 'no reason given').splitlines()[0]
            raise PredictionFailed(
                f'{self.cfg.filename}: the network fails on an image of {size} as the config '
                f'prepares it: {type(error).__name__}: {reason}'
            ) from error

    def __call__(self, image: np.ndarray | str | Path) -> 'BaseDataElement':
        return self.predict(self.prepare(image))


def _sample_fields(leaf: dict, meta: dict, segments: bool) -> dict:
    """Fields that a dataset of mmseg or mmdet adds to each image, besides its path."""
    fields = {key: meta[key] for key in ('label_map', 'reduce_zero_label') if key in meta}
    if segments:
        return fields | dict(seg_fields=[])
    if leaf.get('return_classes'):  # open-vocabulary networks take class names
        return fields | dict(text=meta['classes'], custom_entities=True)
    return fields
