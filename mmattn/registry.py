"""The registries of mmattn, children of mmengine's.

A config of any scope reaches them by prefix, `type='mmattn.CBAM'`, without `custom_imports`:
mmengine imports this module for the prefix and, at the first lookup, every module in `locations`.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry


def _child(parent: Registry, *locations: str) -> Registry:
    return Registry(parent.name, parent=parent, scope='mmattn', locations=list(locations))


MODELS = _child(MMENGINE_MODELS, 'mmattn.blocks', 'mmattn.models')
DATASETS = _child(MMENGINE_DATASETS, 'mmattn.datasets.camvid')
METRICS = _child(MMENGINE_METRICS, 'mmattn.evaluation.coco_metric', 'mmattn.evaluation.iou_metric')
HOOKS = _child(MMENGINE_HOOKS, 'mmattn.engine.hooks')
