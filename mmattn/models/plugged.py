"""The detectors and segmentors of mmdet and mmseg, with `plugins=[...]`."""

import inspect
import logging
from collections.abc import Sequence
from typing import ClassVar

from mmdet.models import FasterRCNN as StockFasterRCNN
from mmdet.models import MaskRCNN as StockMaskRCNN
from mmdet.models import RetinaNet as StockRetinaNet
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS as DET_MODELS
from mmengine.logging import print_log
from mmengine.registry import Registry
from mmseg.models import EncoderDecoder as StockEncoderDecoder
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS as SEG_MODELS
from torch import Tensor

from mmattn.plugins import insert, keep_learning, plugged
from mmattn.registry import MODELS

from .slide_inference import SegmentorInference


class Plugged:
    """A network that puts plugins into itself, and keeps those with `learn` learning.

    `backbone.plugins` of ResNets, MMCV's grammar, are put by the same rules, under the same
    state-dict keys: also into basic blocks, and several at one place in the order in which they are
    written (of which MMSegmentation's ResNet runs only the last).

    Args:
        plugins: see `mmattn.insert`; paths are those of the network, positions those of its
            backbone.
        **kwargs: of the stock class.

    Raises:
        ValueError: a plugin that cannot be understood, built or placed.
    """

    keeps_learning = True
    host: ClassVar[Registry] = DET_MODELS  # where the backbone's name is looked up

    def __init__(self, *, plugins: Sequence[dict] = (), **kwargs) -> None:
        backbone = kwargs.get('backbone')
        own = []
        if backbone and backbone.get('plugins') and self._makes_plugins(backbone['type']):
            kwargs['backbone'] = {k: v for k, v in backbone.items() if k != 'plugins'}
            own = [_below_backbone(plugin) for plugin in backbone['plugins']]
        super().__init__(**kwargs)
        insert(self, [*own, *plugins])
        if own or plugins:
            self.train(self.training)  # freezes and wakes what has just come

    def _makes_plugins(self, kind: str | type) -> bool:
        """Whether a backbone is one of the ResNets that read MMCV's `plugins`."""
        found = self.host.get(kind) if isinstance(kind, str) else kind
        return hasattr(found, 'make_stage_plugins')

    def train(self, mode: bool = True):
        super().train(mode)
        keep_learning(self, mode)
        return self

    def init_weights(self) -> None:
        super().init_weights()
        for _, block in plugged(self):  # below plain containers mmengine does not find them
            if hasattr(block, 'init_weights') and not getattr(block, 'is_init', True):
                block.init_weights()


@MODELS.register_module()
class FasterRCNN(Plugged, StockFasterRCNN):
    """mmdet.FasterRCNN with `plugins=[...]`, see `Plugged`."""


@MODELS.register_module()
class RetinaNet(Plugged, StockRetinaNet):
    """mmdet.RetinaNet with `plugins=[...]`, see `Plugged`."""


@MODELS.register_module()
class MaskRCNN(Plugged, StockMaskRCNN):
    """mmdet.MaskRCNN with `plugins=[...]`, see `Plugged`."""


@MODELS.register_module()
class EncoderDecoder(Plugged, SegmentorInference, StockEncoderDecoder):
    """mmseg.EncoderDecoder with `plugins=[...]`, see `Plugged`, and faster `SegmentorInference`.

    A training crop of ignored pixels alone has loss 0 and teaches nothing; the log says at the
    1st, 10th, 100th, ... how many there were.

    Attributes:
        crops, ignored_crops: seen in training by this process; of ignored pixels alone.
    """

    host = SEG_MODELS
    crops = ignored_crops = 0

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Images (N, 3, H, W) with label maps -> the losses of the heads."""
        ignore = self.decode_head.ignore_index
        for sample in data_samples:
            self.crops += 1
            if not (sample.gt_sem_seg.data != ignore).any():
                self.ignored_crops += 1
                if str(self.ignored_crops).strip('0') == '1':
                    print_log(
                        f'no labelled pixel in {self.ignored_crops} of {self.crops} crops so far, '
                        f'now of {sample.metainfo.get("img_path", "an image")}: no loss from it',
                        logger='current',
                        level=logging.WARNING,
                    )
        return super().loss(inputs, data_samples)


def _plug_the_others() -> None:
    """Register every other detector and segmentor of the two packages, too, by its own name."""
    for host, base in (DET_MODELS, BaseDetector), (SEG_MODELS, BaseSegmentor):
        for name, stock in host.module_dict.items():
            if inspect.isclass(stock) and issubclass(stock, base) and name not in globals():
                doc = (
                    f'{stock.__module__.split(".")[0]}.{name} with `plugins=[...]`, see `Plugged`.'
                )
                parts = dict(host=host, __module__=__name__, __doc__=doc)
                globals()[name] = type(name, (Plugged, stock), parts)
                MODELS.register_module(name, module=globals()[name])


_plug_the_others()


def _below_backbone(plugin: dict) -> dict:
    if not isinstance(plugin, dict):
        return plugin  # which `insert` refuses
    return {k: f'backbone.{v}' if k in ('at', 'replace') else v for k, v in plugin.items()}
