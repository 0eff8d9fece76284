"""The detectors and segmentors of mmdet and mmseg, with `plugins=[...]`."""

import inspect
from collections.abc import Sequence
from typing import ClassVar

from mmdet.models import FasterRCNN as StockFasterRCNN
from mmdet.models import MaskRCNN as StockMaskRCNN
from mmdet.models import RetinaNet as StockRetinaNet
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS as DET_MODELS
from mmengine.registry import Registry
from mmseg.models import EncoderDecoder as StockEncoderDecoder
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS as SEG_MODELS

from mmattn.hub import HubMixin
from mmattn.plugins import insert, keep_trainable, named_plugins
from mmattn.registry import MODELS

from .fused_losses import FusedLosses
from .ignored_batches import IgnoredBatches
from .slide_inference import SegmentorInference

_STOCK = ((DET_MODELS, BaseDetector), (SEG_MODELS, BaseSegmentor))


class PluginsMixin(HubMixin):
    """Mixin: a network that inserts plugins into itself, and keeps those with `learn` trainable.

    `backbone.plugins` of ResNets, MMCV's grammar, follow the same rules, under the same state-dict
    keys. They also go into basic blocks, and several at one place run in the order in which they
    are written (MMSegmentation's ResNet runs only the last of them).

    Args:
        plugins: see `mmattn.insert`; paths start at the network, positions are those of its
            backbone.
        **kwargs: arguments of the stock class.

    Raises:
        ValueError: a plugin that cannot be understood, built or placed.
    """

    trains_plugins = True
    stock_registry: ClassVar[Registry] = DET_MODELS  # where the backbone's name is looked up

    def __init__(self, *, plugins: Sequence[dict] = (), **kwargs) -> None:
        backbone = kwargs.get('backbone')
        backbone_plugins = []
        if backbone and backbone.get('plugins') and self._takes_plugins(backbone['type']):
            kwargs['backbone'] = {k: v for k, v in backbone.items() if k != 'plugins'}
            backbone_plugins = [_below_backbone(plugin) for plugin in backbone['plugins']]
        super().__init__(**kwargs)
        insert(self, [*backbone_plugins, *plugins])
        if backbone_plugins or plugins:
            self.train(self.training)  # applies frozen stages and norm_eval to the new blocks

    def _takes_plugins(self, backbone: str | type) -> bool:
        """Whether a backbone is one of the ResNets with MMCV's argument `plugins`."""
        cls = self.stock_registry.get(backbone) if isinstance(backbone, str) else backbone
        return hasattr(cls, 'make_stage_plugins')

    def train(self, mode: bool = True):
        super().train(mode)
        keep_trainable(self, mode)
        return self

    def init_weights(self) -> None:
        super().init_weights()
        for _, block in named_plugins(self):  # mmengine does not descend into plain containers
            if hasattr(block, 'init_weights') and not getattr(block, 'is_init', True):
                block.init_weights()


def _below_backbone(plugin: dict) -> dict:
    if not isinstance(plugin, dict):
        return plugin  # `insert` refuses it
    return {k: f'backbone.{v}' if k in ('at', 'replace') else v for k, v in plugin.items()}


@MODELS.register_module()
class FasterRCNN(PluginsMixin, StockFasterRCNN):
    """mmdet.FasterRCNN with `plugins=[...]`, see `PluginsMixin`."""


@MODELS.register_module()
class RetinaNet(PluginsMixin, StockRetinaNet):
    """mmdet.RetinaNet with `plugins=[...]`, see `PluginsMixin`."""


@MODELS.register_module()
class MaskRCNN(PluginsMixin, StockMaskRCNN):
    """mmdet.MaskRCNN with `plugins=[...]`, see `PluginsMixin`."""


@MODELS.register_module()
class EncoderDecoder(
    PluginsMixin, FusedLosses, IgnoredBatches, SegmentorInference, StockEncoderDecoder
):
    """mmseg.EncoderDecoder with `plugins=[...]`, see `PluginsMixin`, and `SegmentorInference`.

    A training batch whose pixels are all ignored has loss 0, see `IgnoredBatches`.
    """

    stock_registry = SEG_MODELS


def network_with_plugins(name: str) -> type | None:
    """Make the class `mmattn.NAME` of the detector or segmentor NAME of mmdet or mmseg.

    Returns:
        None if neither package has a network of that name.
    """
    for registry, base in _STOCK:
        stock = registry.module_dict.get(name)
        if _lacks_plugins(stock, base):
            return _add_plugins(name, stock, registry)
    return None


def stock_networks() -> list[str]:
    """Names of the registered detectors of mmdet and segmentors of mmseg that take no plugins."""
    return [
        name
        for registry, base in _STOCK
        for name, cls in registry.module_dict.items()
        if _lacks_plugins(cls, base)
    ]


def _lacks_plugins(cls: type | None, base: type) -> bool:
    return inspect.isclass(cls) and issubclass(cls, base) and not issubclass(cls, PluginsMixin)


def _add_plugins(name: str, stock: type, registry: Registry) -> type:
    doc = f'{stock.__module__.split(".")[0]}.{name} with `plugins=[...]`, see `PluginsMixin`.'
    mixins: tuple[type, ...] = (PluginsMixin,)
    is_segmentor = issubclass(stock, BaseSegmentor) and hasattr(stock, 'loss')
    if is_segmentor and not issubclass(stock, IgnoredBatches):
        mixins += (FusedLosses, IgnoredBatches)
    # pickle finds it as an attribute of the package, which makes it
    attributes = dict(stock_registry=registry, __module__=__package__, __doc__=doc)
    return type(name, (*mixins, stock), attributes)


MODELS.factory, MODELS.factory_names = network_with_plugins, stock_networks


def type_with_plugins(network: type) -> str | None:
    """The name of a network class that takes plugins, made if need be from one that takes none.

    Args:
        network: a class of mmdet, mmseg or a user.

    Returns:
        '' if the class itself takes them; None if it is no detector and no segmentor.
    """
    if issubclass(network, PluginsMixin):
        return ''
    name = network.__name__
    known = MODELS.get_registered(name)
    if known is not None and inspect.isclass(known) and network in known.__mro__:
        return f'mmattn.{name}'
    registry = next((registry for registry, base in _STOCK if issubclass(network, base)), None)
    if registry is None:
        return None
    if known is not None:  # made of another class, such as a user's own RetinaNet
        name = f'{name}_of_{network.__module__.replace(".", "_")}'
    if name not in MODELS.module_dict:
        MODELS.register_module(name, module=_add_plugins(name, network, registry))
    return f'mmattn.{name}'
