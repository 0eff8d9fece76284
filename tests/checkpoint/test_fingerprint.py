"""What resuming compares: every setting that decides a step, and none that says the same otherwise."""

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.runner import EpochBasedTrainLoop

from mmattn.checkpoint.fingerprint import changed_values, check_fingerprint, config_fingerprint
from mmattn.engine.test import test as evaluate
from mmattn.errors import UsageError
from mmattn.inference.infer import infer
from mmattn.testing.kill import compare_records
from mmattn.zoo import load_model
from mmattn.zoo.publish import publish
from tests.conftest import tiny_options
from tests.engine.killing import CONFIG, SMALL, At, once, record
from tests.test_tools import tool

EMA = dict(type='EMAHook', momentum=0.1)


def course(**given):
    parts = dict(
        model=dict(type='X', backbone=dict(norm_cfg=dict(type='SyncBN'), init_cfg=dict(a=1))),
        train_dataloader=dict(batch_size=2, num_workers=0),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=4),
        custom_hooks=[EMA],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=2)),
    )
    return config_fingerprint(Config(parts | given))


CHANGES = {
    'EMA off': (dict(custom_hooks=[]), 'custom_hooks.EMAHook.momentum 0.1 -> absent'),
    'EMA slower': (
        dict(custom_hooks=[dict(EMA, momentum=0.2)]),
        r'custom_hooks.EMAHook.momentum 0.1 -> 0.2\. Pass',
    ),
    'EMA of another kind': (
        dict(custom_hooks=[dict(EMA, type='ExpMomentumEMAHook')]),
        "custom_hooks.EMAHook.type 'EMAHook' -> 'ExpMomentumEMAHook'",
    ),
    'EMA with buffers': (
        dict(custom_hooks=[dict(EMA, update_buffers=True)]),
        'custom_hooks.EMAHook.update_buffers absent -> True',
    ),
    'epochs': (
        dict(train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2)),
        'train_cfg.type Iter -> Epoch',
    ),
    'epochs by a word': (dict(train_cfg=dict(by_epoch=True)), 'train_cfg.type Iter -> Epoch'),
    'a loop of its own': (dict(train_cfg=dict(type='x.OwnLoop')), 'train_cfg.type Iter -> OwnLoop'),
    'the seed': (dict(randomness=dict(seed=4)), 'randomness.seed 3 -> 4'),
    'the rate': (
        dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.2))),
        'optim_wrapper.optimizer.lr 0.1 -> 0.2',
    ),
}


@pytest.mark.parametrize('name', CHANGES)
def test_what_changes_a_step_is_refused(name):
    given, why = CHANGES[name]
    meta = dict(world=1, batch=2, seed=3, course=course())
    with pytest.raises(UsageError, match=f'config differs from the checkpoint: .*{why}'):
        check_fingerprint(meta, course(**given), 1, 2, topology=False, config=False)
    allowed = check_fingerprint(meta, course(**given), 1, 2, topology=False, config=True)
    assert allowed and allowed == changed_values({**course(), 'randomness.seed': '3'}, {**{'randomness.seed': '3'}, **course(**given)})  # fmt: skip


SAME = {
    'as it was': {},
    'words for one loop': dict(train_cfg=dict(by_epoch=False, max_iters=9)),
    'a norm that this machine replaces': dict(
        model=dict(type='X', backbone=dict(norm_cfg=dict(type='BN'), init_cfg=None))
    ),
    'a seed that was drawn': dict(randomness=dict(seed=3)),
    'how data are loaded': dict(train_dataloader=dict(batch_size=2, num_workers=8)),
    'a hook that saves': dict(default_hooks=dict(checkpoint=None)),
}


@pytest.mark.parametrize('name', SAME)
def test_what_says_the_same_is_not(name):
    meta = dict(world=1, batch=2, seed=3, course=course())
    assert check_fingerprint(meta, course(**SAME[name]), 1, 2, topology=False, config=False) == []
    meta = dict(meta, course=course(**SAME[name]))
    assert check_fingerprint(meta, course(), 1, 2, topology=False, config=False) == []


def test_classes_and_their_names_are_one():
    with_class = course(custom_hooks=[dict(EMA, type=EMAHook)])
    written = course(custom_hooks=[dict(EMA, type='mmengine.hooks.ema_hook.EMAHook')])
    assert with_class == written and with_class != course(custom_hooks=[])
    loops = dict(type=EpochBasedTrainLoop), dict(type='mmengine.EpochBasedTrainLoop')
    assert {course(train_cfg=loop)['train_cfg.type'] for loop in loops} == {'Epoch'}


def test_norms_that_synchronise_stay_another_thing_where_they_do(monkeypatch):
    plain = dict(type='X', backbone=dict(norm_cfg=dict(type='BN'), init_cfg=None))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    synced = course(launcher='pytorch')
    meta = dict(world=2, batch=2, course=synced)
    with pytest.raises(UsageError, match="norm_cfg.type 'SyncBN' -> 'BN'"):
        check_fingerprint(
            meta, course(launcher='pytorch', model=plain), 2, 2, topology=False, config=False
        )
    assert check_fingerprint(meta, synced, 2, 2, topology=False, config=False) == []


# ---- the config that a run leaves ----------------------------------------------------------------
@pytest.fixture(scope='module')
def left(street, tmp_path_factory):
    """The folder of a run with attention and options that was killed, and the run that was not."""
    root = tmp_path_factory.mktemp('left')
    options = tiny_options(street) | {
        'custom_hooks': [EMA, dict(type='mmattn.CurvesHook')],
        'optim_wrapper.optimizer.weight_decay': 0.001,
    }
    given = dict(attention='pam', seed=9, rehearsal=False)
    assert once(root / 'whole', options, **given)
    assert not once(root / 'run', options, At('before_train_iter', 4), **given)
    return root


def test_it_resumes_the_run(left, monkeypatch):
    from tests.engine import killing

    run = left / 'run'
    monkeypatch.setattr(killing, 'SMALL', {})  # no option: all is in the file
    own = run / CONFIG.name
    text = own.read_text()
    assert "'SyncBN'" not in text and Config.fromfile(own).resume is False
    slower = {'custom_hooks': [dict(EMA, momentum=0.2)]}
    with pytest.raises(UsageError, match='custom_hooks.EMAHook.momentum 0.1 -> 0.2'):
        once(run, slower, config=own, resume='latest')
    with pytest.raises(UsageError, match='--attention gc: config .* has pam already. Leave'):
        once(run, {}, config=own, resume='latest', attention='gc')
    assert once(run, {}, config=own, resume='latest', attention='pam', rehearsal=False)
    compare_records(record(run), record(left / 'whole'), 'run')
    assert Config.fromfile(own).resume is False and 'iter_2.pth' not in own.read_text()
    assert once(run, {}, config=own, resume='auto', rehearsal=False)  # what it wrote over itself


def test_every_tool_takes_it(left, street, tmp_path, monkeypatch, capsys):
    run = left / 'whole'
    own, best = run / CONFIG.name, run / 'best.pth'
    assert 'mIoU' in evaluate(own, best, work_dir=tmp_path / 'test')
    photo = min((street / 'leftImg8bit/test').rglob('*.png'))
    infer(own, best, photo, out_dir=tmp_path / 'out', device='cpu')
    assert tool('check_data')([str(own)]) == 0
    assert tool('cost')([str(own), '--no-latency', '--size', '32', '32']) == 0
    files = publish(own, best, tmp_path / 'published')
    assert files['pth'].name.startswith('ccnet_r18_street_pam-')
    # a folder of what was published, by the config without attention, with and without its name
    wanted = torch.load(best, weights_only=True)['state_dict']
    for config, attention in (own, None), (CONFIG, None), (CONFIG, 'pam'):
        options = None if config == own else SMALL
        out = tmp_path / f'{config.parent.name}{attention}'
        infer(config, tmp_path / 'published', photo, out_dir=out, options=options,
              attention=attention, device='cpu')  # fmt: skip
        assert 'mIoU' in evaluate(
            config, tmp_path / 'published', work_dir=tmp_path / 'test', attention=attention,
            cfg_options=(options or {}) | tiny_options(street),
        )  # fmt: skip
    model = load_model(own, tmp_path / 'published', 'cpu')
    assert all(torch.equal(v, wanted[k]) for k, v in model.state_dict().items())
