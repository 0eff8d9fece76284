"""Between two lines of the log a step reads no number of the device."""

import traceback

import pytest
import torch
from mmengine.hooks import Hook
from torch.utils._python_dispatch import TorchDispatchMode

from mmattn.engine import late_values
from mmattn.engine.late_values import LateValues
from mmattn.engine.train import train
from tests.engine.killing import CONFIG, SMALL

aten = torch.ops.aten
_ON_THE_HOST = ('_limit', '_is_labelled')  # where functions look at tensors of a CPU alone
_READS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal}


class Reads(TorchDispatchMode):
    """Lists where our code reads numbers that would be on a device."""

    def __init__(self):
        super().__init__()
        self.places = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = [t for a in args[1:2] if isinstance(a, list | tuple) for t in a]
        by_mask = func.overloadpacket in (aten.index, aten.index_put_) and any(
            t is not None and t.dtype == torch.bool for t in masks
        )
        if func.overloadpacket in _READS or by_mask:
            frames = [f for f in traceback.extract_stack() if '/mmattn/' in f.filename]
            if frames and frames[-1].name not in _ON_THE_HOST:
                self.places.append(''.join(traceback.format_list(frames[-3:])))
        return func(*args, **(kwargs or {}))


class CountReads(Hook):
    """Counts reads in the steps themselves, the hooks of a step included."""

    priority = 'LOWEST'

    def __init__(self):
        self.reads, self.steps = Reads(), 0

    def before_run(self, runner):
        step, model = runner.model.train_step, runner.model

        def train_step(*args, **kwargs):
            self.reads.__enter__()
            return step(*args, **kwargs)

        model.train_step = train_step

    def after_train_iter(self, runner, *args, **kwargs):
        self.steps += 1
        self.reads.__exit__(None, None, None)


@pytest.fixture
def counted(tiny, tmp_path, monkeypatch):
    def count(**options):
        hook = CountReads()
        changes = SMALL | tiny | {'default_hooks.logger.interval': 50} | options
        changes |= {'default_hooks.checkpoint.interval': 50, 'train_cfg.max_iters': 3}
        changes['default_hooks.checkpoint.save_last'] = False
        fields = dict(validate=False, rehearsal=False)
        train(CONFIG, work_dir=tmp_path, cfg_options=changes, hooks=[hook], **fields)
        assert hook.steps == 3
        return hook.reads.places

    return count


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'optim_wrapper.clip_grad': dict(max_norm=1.0)},
        {'model.decode_head.loss_decode.avg_non_ignore': True},
        {'model.decode_head.sampler': dict(type='OHEMPixelSampler', thresh=0.7, min_kept=50)},
    ],
    ids=['plain', 'clipped', 'avg_non_ignore', 'ohem'],
)
def test_a_step_reads_nothing(counted, monkeypatch, options):
    monkeypatch.setattr(late_values, '_READ_AT_ONCE', ())
    assert counted(**options) == []


def test_reads_are_counted(counted):
    assert len(counted()) >= 3  # at once, loss and gradient of each step


def test_values_come_one_call_later():
    values = LateValues()
    first = torch.tensor([1.0, 2.0])
    assert values.take() is None and values.exchange(1, first) is None
    first.zero_()
    assert values.exchange(2, torch.tensor([3.0])) == (1, [1.0, 2.0])
    assert values.take() == (2, [3.0]) and values.take() is None
