"""A config of mmattn as MMDetection and MMSegmentation train it: with their classes alone."""

import copy
from typing import Any

from mmdet.registry import MODELS as DET_MODELS
from mmengine.config import Config
from mmseg.registry import MODELS as SEG_MODELS

from mmattn.errors import UsageError

EVALUATION_KEYS = (
    'val_cfg',
    'val_dataloader',
    'val_evaluator',
    'test_cfg',
    'test_dataloader',
    'test_evaluator',
)
_POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')  # of MMCV's grammar of plugins
_BASIC_DEPTHS = (18, 34)
_LAST = {'before_add': 'after_conv3'}  # the same place in a bottleneck


def stock_config(cfg: Config) -> Config:
    """The config with the stock classes of the same names, runner and loops of MMEngine.

    Plugins become those of the backbone, in MMCV's grammar; stages that are frozen stay so, and
    their plugins with them.

    Args:
        cfg: a config of mmattn; it is not changed.

    Raises:
        UsageError: a class or a plugin has no counterpart.
    """
    stock = copy.deepcopy(cfg)
    stock.pop('attention', None)
    model = stock.model
    plugins = model.pop('plugins', None)
    if plugins and model.backbone.get('depth') in _BASIC_DEPTHS:
        raise UsageError(
            f'ResNet-{model.backbone.depth} has blocks of two convolutions, which take no plugins '
            'in MMDetection and MMSegmentation, so there is nothing to compare with.'
        )
    if plugins:
        model.backbone.plugins = [_stock_plugin(plugin) for plugin in plugins]
    registry = DET_MODELS if cfg.default_scope == 'mmdet' else SEG_MODELS
    _rename(model, registry, 'model')
    stock.update(dict.fromkeys(EVALUATION_KEYS))
    stock.custom_hooks = []
    stock.resume, stock.load_from = False, None
    return stock


def _stock_plugin(plugin: dict) -> dict:
    position = _LAST.get(plugin.get('position'), plugin.get('position'))
    if position not in _POSITIONS or plugin.get('blocks'):
        raise UsageError(
            f'plugin {dict(plugin)}: MMCV puts plugins after convolutions of residual blocks '
            f'alone ({", ".join(_POSITIONS)}), so there is nothing to compare with.'
        )
    stages = dict(stages=plugin['stages']) if plugin.get('stages') else {}
    return dict(cfg=dict(plugin['cfg']), position=position, **stages)


def _rename(value: Any, registry: Any, where: str) -> None:
    """Replace 'mmattn.X' by 'X' in all types but those of plugins."""
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _rename(item, registry, f'{where}[{index}]')
    if not isinstance(value, dict):
        return
    name = value.get('type')
    if isinstance(name, str) and name.startswith('mmattn.'):
        stock = name.removeprefix('mmattn.')
        if registry.get(stock) is None or registry.get(stock).__module__.startswith('mmattn'):
            raise UsageError(f'{where}: {name} has no counterpart to be compared with.')
        value['type'] = stock
    for key, item in value.items():
        if key != 'plugins':
            _rename(item, registry, f'{where}.{key}')
