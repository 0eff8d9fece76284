"""Entry points of torch.hub: `torch.hub.load('mmattn/mmattn', 'load_model', NAME)`."""

dependencies = ['torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'yaml']

from mmattn import list_models as list_models  # noqa: E402
from mmattn import load_model as load_model  # noqa: E402
