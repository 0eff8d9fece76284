"""For torch.hub: `torch.hub.load('mmattn/mmattn', 'load_model', NAME)`; names: `list_models`."""

dependencies = ['torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'yaml']

from mmattn.zoo import list_models as list_models  # noqa: E402
from mmattn.zoo import load_model as load_model  # noqa: E402
