"""What the tests of resuming share: a tiny training that ends at a given point."""

from copy import deepcopy

from mmengine.hooks import Hook

from mmattn.engine.train import train
from mmattn.testing.kill import StepRecorder, read_record
from tests.conftest import ROOT

CONFIG = ROOT / 'configs' / 'ccnet_r18_street.py'
DETECTOR = ROOT / 'configs' / 'mask_rcnn_r18_street.py'


SMALL = {
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.decode_head.in_channels': 64,
    'model.decode_head.channels': 16,
    'model.auxiliary_head.in_channels': 32,
    'model.auxiliary_head.channels': 8,
    'custom_hooks': [],
    'visualizer.vis_backends': [dict(type='LocalVisBackend')],
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, and nothing is saved on the way."""


class At(Hook):
    """Calls `act` in a method of hooks, at an iteration (the first is 1).

    Args:
        stage: the method, such as 'before_train_iter'.
        iteration: finished ones, or the one being made.
        act: called with the runner; by default it kills.
    """

    def __init__(self, stage, iteration, act=None, priority='HIGHEST'):
        self.stage, self.iteration, self.priority = stage, iteration, priority
        self.act = act or kill
        setattr(self, stage, self._call)

    def _call(self, runner, *args, **kwargs):
        step = runner.iter + ('train_iter' in self.stage)
        if step == self.iteration:
            self.act(runner)

    def get_triggered_stages(self):
        return [self.stage]


def kill(runner):
    raise Killed


def once(folder, options, *hooks, config=CONFIG, **given):
    """Train until the end or until killed; returns whether it came to the end."""
    hooks = [StepRecorder(folder.with_suffix('.jsonl')), *hooks]
    options = deepcopy(options if config == DETECTOR else SMALL | options)  # merging takes keys out
    try:
        train(config, work_dir=folder, cfg_options=options, hooks=hooks, **given)
    except Killed:
        return False
    return True


def record(folder):
    return read_record(folder.with_suffix('.jsonl'))
