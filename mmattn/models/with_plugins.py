"""The detectors and segmentors of mmdet and mmseg, with `plugins=[...]`."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from mmdet.models import FasterRCNN as StockFasterRCNN
from mmdet.models import MaskRCNN as StockMaskRCNN
from mmdet.models import RetinaNet as StockRetinaNet
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS as DET_MODELS
from mmengine.logging import print_log
from mmengine.registry import Registry
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder as StockEncoderDecoder
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS as SEG_MODELS
from torch import Tensor, nn

from mmattn.plugins import insert, keep_trainable, named_plugins
from mmattn.registry import MODELS

from .slide_inference import SegmentorInference

_HOSTS = ((DET_MODELS, BaseDetector), (SEG_MODELS, BaseSegmentor))


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

    trains_plugins = True
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
        keep_trainable(self, mode)
        return self

    def init_weights(self) -> None:
        super().init_weights()
        for _, block in named_plugins(self):  # below plain containers mmengine does not find them
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


class IgnoredBatches:
    """A segmentor for which a batch without a labelled pixel has loss 0, whatever its losses are.

    Every parameter that a labelled batch reaches then has a gradient of zeros. The log says at the
    1st, 10th, 100th, ... how many crops had no labelled pixel.

    Attributes:
        crops, ignored_crops: seen in training by this process; of ignored pixels alone.
    """

    crops = ignored_crops = 0

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Images (N, 3, H, W) with label maps -> the losses of the heads."""
        heads = _heads(self)
        ignore = heads[0].ignore_index if heads else None
        truths = [getattr(sample, 'gt_sem_seg', None) for sample in data_samples]
        if ignore is None or not truths or None in truths:  # labels of another kind
            return super().loss(inputs, data_samples)
        empty = [not bool((truth.data != ignore).any()) for truth in truths]
        for sample, is_empty in zip(data_samples, empty):
            self.crops += 1
            if is_empty:
                self.ignored_crops += 1
                self._say(sample, heads, all(empty))
        if not all(empty):
            return super().loss(inputs, data_samples)
        # Of ignored pixels alone some losses are nan, some are not 0, and some fail. Those of any
        # true classes are finite, reach all parameters, and times 0 they teach nothing.
        classes = [k for k in range(min(head.num_classes for head in heads)) if k != ignore] or [0]
        losses = super().loss(inputs, [_labelled(sample, classes) for sample in data_samples])
        return {
            key: [part * 0 for part in value] if isinstance(value, list | tuple) else value * 0
            for key, value in losses.items()
            if 'loss' in key
        }

    def _say(self, sample, heads: list[nn.Module], alone: bool) -> None:
        if str(self.ignored_crops).strip('0') != '1':
            return
        kinds = {type(loss).__name__ for head in heads for loss in _losses(head)}
        others = ', '.join(sorted(kinds - _OF_PIXELS))
        what = f'{others} may still count it in its batch' if others and not alone else ''
        print_log(
            f'no labelled pixel in {self.ignored_crops} of {self.crops} crops so far, '
            f'now of {sample.metainfo.get("img_path", "an image")}: {what or "no loss from it"}',
            logger='current',
            level=logging.WARNING,
        )


_OF_PIXELS = {'CrossEntropyLoss', 'OhemCrossEntropy'}  # sums over labelled pixels, and no more


def _heads(model: nn.Module) -> list[nn.Module]:
    """The heads that learn classes of pixels."""
    names = ('decode_head', 'auxiliary_head')
    parts = [part for name in names if (part := getattr(model, name, None)) is not None]
    found = [h for p in parts for h in (p if isinstance(p, nn.ModuleList) else [p])]
    return [h for h in found if hasattr(h, 'ignore_index') and hasattr(h, 'num_classes')]


def _losses(head: nn.Module) -> Iterator[nn.Module]:
    loss = getattr(head, 'loss_decode', None)
    if isinstance(loss, nn.Module):
        yield from loss if isinstance(loss, nn.ModuleList) else [loss]


def _labelled(sample, classes: list[int]):
    """A sample with the same image and the classes in turn as labels."""
    truth = sample.gt_sem_seg.data
    turn = torch.arange(truth.numel(), device=truth.device) % len(classes)
    labels = turn.new_tensor(classes)[turn].view_as(truth).to(truth.dtype)
    made = sample.new()
    made.gt_sem_seg = PixelData(data=labels)
    return made


@MODELS.register_module()
class EncoderDecoder(Plugged, IgnoredBatches, SegmentorInference, StockEncoderDecoder):
    """mmseg.EncoderDecoder with `plugins=[...]`, see `Plugged`, and faster `SegmentorInference`.

    A training batch of ignored pixels alone has loss 0 and teaches nothing, see `IgnoredBatches`.
    """

    host = SEG_MODELS


def _plug_the_others() -> None:
    """Register every other detector and segmentor of the two packages, too, by its own name."""
    for host, base in _HOSTS:
        for name, stock in host.module_dict.items():
            if inspect.isclass(stock) and issubclass(stock, base) and name not in globals():
                _plug(name, stock, host)


def _plug(name: str, stock: type, host: Registry) -> None:
    doc = f'{stock.__module__.split(".")[0]}.{name} with `plugins=[...]`, see `Plugged`.'
    segments = issubclass(stock, BaseSegmentor) and hasattr(stock, 'loss')
    bases = (Plugged, IgnoredBatches, stock) if segments else (Plugged, stock)
    globals()[name] = type(name, bases, dict(host=host, __module__=__name__, __doc__=doc))
    MODELS.register_module(name, module=globals()[name])


def plugged_type(network: type) -> str | None:
    """The name of a network class that takes plugins, made if need be from one that takes none.

    Returns:
        '' if the class itself takes them; None if it is no detector and no segmentor.
    """
    if issubclass(network, Plugged):
        return ''
    name, made = network.__name__, MODELS.module_dict.get(network.__name__)
    if made is not None and inspect.isclass(made) and network in made.__mro__:
        return f'mmattn.{name}'
    host = next((host for host, base in _HOSTS if issubclass(network, base)), None)
    if host is None:
        return None
    if made is not None or name in globals():  # of another class, such as an own RetinaNet
        name = f'{name}_of_{network.__module__.replace(".", "_")}'
    if name not in globals():
        _plug(name, network, host)
    return f'mmattn.{name}'


_plug_the_others()


def _below_backbone(plugin: dict) -> dict:
    if not isinstance(plugin, dict):
        return plugin  # which `insert` refuses
    return {k: f'backbone.{v}' if k in ('at', 'replace') else v for k, v in plugin.items()}
