"""What holds for every run holds whatever hooks, data sets and disks a config brings."""

import errno
import os
import re
import signal
from collections import Counter, OrderedDict
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import CheckpointHook as EngineHook
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.structures import PixelData
from mmseg.datasets import CityscapesDataset
from mmseg.structures import SegDataSample
from torch.utils.data import Dataset

from mmattn.checkpoint import write as saving
from mmattn.checkpoint.find import find_checkpoint
from mmattn.checkpoint.manifest import facts_of, manifest_of, verify
from mmattn.checkpoint.plain_values import NotPlain, to_plain
from mmattn.checkpoint.read import read_checkpoint
from mmattn.checkpoint.write import link_best, write_checkpoint
from mmattn.engine.hooks.checkpoint import CheckpointHook, adapt_checkpoint_hook
from mmattn.engine.network import build_model
from mmattn.engine.test import test as evaluate
from mmattn.engine.train import train
from mmattn.errors import CheckpointError, Stopped, UsageError, WriteError
from mmattn.inference.infer import infer
from mmattn.testing.kill import compare_records
from mmattn.zoo.publish import publish
from tests.checkpoint.test_checkpoints_survive import save, value
from tests.conftest import tiny_options
from tests.engine.killing import CONFIG, At, once, record

SHORT = {'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2}


class Colour(Enum):
    RED = 7


# ---- what is written ---------------------------------------------------------------------------
def test_what_has_a_plain_form_is_written_in_it():
    state = OrderedDict(weight=torch.ones(2))
    state._metadata = {'': dict(version=2)}
    given = dict(
        palette=np.array([[1, 2, 3]], np.uint8), names=np.array(['a', 'b']), mixed=[np.float32(0.5)],
        long=np.array([1.5], np.longdouble), objects=np.array([1, 'x', None], dtype=object),
        colour=Colour.RED, path=Path('a/b'), keys=dict(a=1).keys(), some=frozenset('a'), of=range(3),
        state=state, nested=(np.int64(3), {np.int64(4): np.bool_(True)}), counts=Counter('aab'),
    )  # fmt: skip
    found = to_plain(given)
    assert found['state'] is state and found['counts'] == Counter('aab')
    del found['state'], found['counts']
    assert found == dict(
        palette=[[1, 2, 3]], names=['a', 'b'], mixed=[0.5], long=[1.5], objects=[1, 'x', None],
        colour=7, path='a/b', keys=['a'], some={'a'}, of=[0, 1, 2], nested=(3, {4: True}),
    )  # fmt: skip
    assert type(found['nested'][0]) is int and type(found['mixed'][0]) is float
    assert to_plain(found) is found


@pytest.mark.parametrize('odd', [len, object(), np.datetime64('2024-01-01'), lambda x: x])
def test_what_has_none_is_refused_by_its_key(tmp_path, odd):
    content = dict(state_dict={}, meta=dict(iter=1, dataset_meta=dict(colours=[0, odd])))
    with pytest.raises(NotPlain, match=r'meta\.dataset_meta\.colours\.1 of the checkpoint is .*'):
        write_checkpoint(tmp_path / 'a.pth', content, dict(iter=1))
    assert not list(tmp_path.iterdir())


def test_a_save_counts_when_the_reader_takes_it(tmp_path, monkeypatch):
    """Red when the manifest is written of what was never read: here the conversion is broken."""
    old = save(tmp_path, 1)
    monkeypatch.setattr(saving, 'to_plain', lambda content: content)
    content = dict(state_dict={}, meta=dict(iter=2, palette=np.zeros((2, 3))), message_hub={})
    with pytest.raises(WriteError, match=r'iter_2.pth is not saved, .*numpy'):
        write_checkpoint(tmp_path / 'iter_2.pth', content, dict(iter=2))
    assert {p.name for p in tmp_path.iterdir()} == {old.name, manifest_of(old).name}


@pytest.fixture
def arrays():
    """A data set class whose facts are arrays, and one that no file can hold."""

    facts = {k: np.array(CityscapesDataset.METAINFO[k]) for k in ('classes', 'palette')}
    parts = dict(METAINFO=dict(facts, reader=len), __module__=__name__)
    ArraysDataset = type('ArraysDataset', (CityscapesDataset,), parts)
    DATASETS.register_module(module=ArraysDataset)
    yield {f'{x}_dataloader.dataset.type': 'ArraysDataset' for x in ('train', 'val', 'test')}
    del DATASETS.module_dict['ArraysDataset']


def test_colours_as_an_array(tiny, street, arrays, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmattn.engine.runner.warn', said.append)
    run, options = tmp_path / 'run', tiny | SHORT | arrays
    assert once(run, options)
    assert [x for x in said if 'reader' in x] == [
        'meta.dataset_meta.reader is not in the checkpoints of this run: no text, number or list of '
        'them'
    ]
    meta = read_checkpoint(run / 'best.pth')['meta']['dataset_meta']
    assert meta == dict(
        classes=list(CityscapesDataset.METAINFO['classes']),
        palette=CityscapesDataset.METAINFO['palette'],
    ) | {k: v for k, v in meta.items() if k not in ('classes', 'palette')}
    own = run / CONFIG.name
    assert 'mIoU' in evaluate(own, run / 'iter_2.pth', work_dir=tmp_path / 'test')
    photo = min((street / 'leftImg8bit/test').rglob('*.png'))
    infer(own, run / 'best.pth', photo, out_dir=tmp_path / 'out', device='cpu')
    assert list((tmp_path / 'out').rglob('*.png'))
    assert publish(own, run / 'best.pth', tmp_path / 'published')['card'].is_file()
    assert once(run, options | {'train_cfg.max_iters': 3}, resume='latest', rehearsal=False)
    assert not [line for line in _log(run) if 'metainfo' in line]


def _log(folder):
    return '\n'.join(p.read_text() for p in folder.glob('*/*.log')).splitlines()


class NoiseDataset(Dataset):
    """A data set of torch's kind alone: no `metainfo`, no `pipeline`, no `lazy_init`."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64)))
        sample.gt_sem_seg = PixelData(data=torch.full((1, 64, 64), index % 19))
        return dict(inputs=torch.full((3, 64, 64), index, dtype=torch.uint8), data_samples=sample)


def test_a_data_set_that_is_none_of_mmengines_is_trained_on(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS.module_dict, 'NoiseDataset', NoiseDataset)
    config = tmp_path / 'noise.py'
    loader = "dict(dataset=dict(_delete_=True, type='NoiseDataset', length=6))"
    config.write_text(f'_base_ = {str(CONFIG)!r}\ntrain_dataloader = {loader}\n')
    options = {key: value for key, value in tiny_options('').items() if 'data_root' not in key}
    options |= SHORT | {'train_cfg.max_iters': 2}
    work_dir = train(config, work_dir=tmp_path / 'run', validate=False, cfg_options=options)
    assert (work_dir / 'iter_2.pth').is_file()


def test_a_hook_that_saves_an_object_is_refused_before_the_first_step(tiny, tmp_path):
    class Saves(Hook):
        def before_save_checkpoint(self, runner, checkpoint):
            checkpoint['own'] = dict(history=self)

    with pytest.raises(UsageError, match=r'own\.history of the checkpoint is .*Saves'):
        once(tmp_path / 'run', tiny | SHORT, Saves(), rehearsal=False)
    assert not list((tmp_path / 'run').glob('*.pth'))


# ---- hooks of others ----------------------------------------------------------------------------
@pytest.fixture
def derived():
    """A hook derived from mmengine's, which does in its own way what ours does in another."""

    class MyCheckpointHook(EngineHook):
        saved = 0

        def _save_checkpoint_with_step(self, runner, step, meta):
            self.saved += 1
            self.last_ckpt = os.path.join(self.out_dir, f'mine_{step}.pth')
            for old in Path(self.out_dir).glob('mine_*.pth'):
                self.file_backend.remove(str(old))
            runner.save_checkpoint(self.out_dir, f'mine_{step}.pth', meta=meta, by_epoch=False)

    HOOKS.register_module(module=MyCheckpointHook)
    yield MyCheckpointHook
    del HOOKS.module_dict['MyCheckpointHook']


def test_mmengines_hook_and_those_derived_from_it_are_ours(derived):
    hook = adapt_checkpoint_hook(EngineHook(interval=3, by_epoch=False))
    assert type(hook) is CheckpointHook and hook.interval == 3
    own = adapt_checkpoint_hook(derived(by_epoch=False))
    assert isinstance(own, CheckpointHook) and isinstance(own, derived)
    assert type(own)._save_checkpoint_with_step is derived._save_checkpoint_with_step
    assert adapt_checkpoint_hook(own) is own and type(adapt_checkpoint_hook(own)) is type(own)


KINDS = {
    'name': dict(type='mmengine.CheckpointHook', by_epoch=False, interval=2, save_best='mIoU'),
    'derived': dict(type='MyCheckpointHook', by_epoch=False, interval=2),
    'weights alone': dict(type='CheckpointHook', by_epoch=False, interval=2, save_optimizer=False),
    'none': None,
}


@pytest.fixture(scope='module')
def whole(street, tmp_path_factory):
    """What the steps of a run are that nothing stops."""
    run = tmp_path_factory.mktemp('runs') / 'whole'
    assert once(run, tiny_options(street), rehearsal=False)
    return record(run)


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_is_stopped_and_resumed_with_any_hook(tiny, whole, derived, tmp_path, kind):
    hook = KINDS[kind] and dict(KINDS[kind], _delete_=True)
    options = {k: v for k, v in tiny.items() if 'checkpoint' not in k}
    options |= {'default_hooks.checkpoint': hook}
    run = tmp_path / 'run'
    stop = At('before_train_iter', 3, lambda runner: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match='at iteration 3; saved iter_3. Run again with --resume'):
        once(run, options, stop, rehearsal=False)
    assert find_checkpoint(run).name == 'iter_3.pth'
    assert once(run, options, resume='auto', rehearsal=False)
    compare_records(record(run), whole, kind)
    left = {p.name for p in run.glob('*.pth')}
    assert (
        left
        == {
            'name': {'iter_2.pth', 'iter_4.pth', 'best.pth', left_best(left)},
            'derived': {'mine_4.pth'},
            'weights alone': {'iter_2.pth', 'iter_3.pth', 'iter_4.pth'},
            'none': {'iter_3.pth'},
        }[kind]
    )
    for name in left:
        assert verify(run / name) and read_checkpoint(run / name)['meta']['course']
    build_model(run / CONFIG.name, run / sorted(left)[-1])


def left_best(names):
    return next((n for n in names if n.startswith('best_mIoU_iter_')), None)


def test_checkpoints_in_a_folder_of_their_own_are_found(tiny, tmp_path):
    options = tiny | {'default_hooks.checkpoint.out_dir': str(tmp_path / 'elsewhere')}
    assert not once(tmp_path / 'run', options, At('before_train_iter', 4), rehearsal=False)
    assert find_checkpoint(tmp_path / 'run') == tmp_path / 'elsewhere' / 'run' / 'iter_2.pth'
    assert once(tmp_path / 'run', options, resume='latest', rehearsal=False)
    assert (tmp_path / 'elsewhere' / 'run' / 'iter_4.pth').is_file()


# ---- what cannot be used ------------------------------------------------------------------------
@pytest.mark.parametrize('how', ['code', 'cut', 'no manifest'])
def test_auto_begins_anew_only_where_there_is_nothing(tmp_path, how):
    assert find_checkpoint(tmp_path) is None
    path = save(tmp_path, 2)
    if how == 'code':
        torch.save(dict(state_dict={}, meta=dict(x=np.float64(1))), path)
        manifest_of(path).unlink()
    else:
        path.write_bytes(path.read_bytes()[:500])
        if how == 'no manifest':
            manifest_of(path).unlink()
    message = 'there are checkpoints, and none can be used.*Start anew in another folder'
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(tmp_path)
    assert path.exists()
    path.unlink()  # whoever removes it begins anew
    assert find_checkpoint(tmp_path) is None


def test_auto_on_what_is_damaged_ends_with_4_and_removes_nothing(tiny, tmp_path):
    run = tmp_path / 'run'
    run.mkdir()
    save(run, 2).write_bytes(b'<html>')
    with pytest.raises(CheckpointError, match='none can be used') as error:
        once(run, tiny, resume='auto')
    assert error.value.code == 4 and (run / 'iter_2.pth').read_bytes() == b'<html>'


def test_weights_alone_are_no_reason_to_begin_over_them(tiny, tmp_path):
    run, options = tmp_path / 'run', tiny | {'default_hooks.checkpoint.save_optimizer': False}
    assert not once(run, options, At('before_train_iter', 4), rehearsal=False)
    before = (run / 'iter_2.pth').read_bytes()
    message = r'iter_2.pth holds weights alone, .*--init-from (\S+), or anew in another folder'
    with pytest.raises(CheckpointError, match=message) as error:
        once(run, options, resume='auto')
    assert (run / 'iter_2.pth').read_bytes() == before
    weights = re.search(message, str(error.value))[1]  # the remedy
    assert once(tmp_path / 'new', options, init_from=weights, rehearsal=False)


def test_a_config_that_says_resume_resumes_as_the_flag_does(tiny, tmp_path):
    run, options = tmp_path / 'run', tiny | {'resume': True}
    kill = At('before_train_iter', 4)
    assert not once(run, options, kill, rehearsal=False)  # nothing there: it begins
    with pytest.raises(UsageError, match='config differs from the checkpoint: optim_wrapper'):
        once(run, options | {'optim_wrapper.optimizer.lr': 0.5})
    assert once(run, options, rehearsal=False)
    assert len(record(run)) == 5


# ---- disks that know less ------------------------------------------------------------------------
@pytest.fixture
def no_links(monkeypatch):
    """A file system without symbolic links, as Google Drive in Colab, exFAT or SMB."""

    def refuse(source, target, *_, **__):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), source, None, target)

    monkeypatch.setattr(os, 'symlink', refuse)


def test_the_best_one_is_a_copy_where_there_are_no_links(tmp_path, no_links):
    link_best(save(tmp_path, 1))
    link_best(save(tmp_path, 2))
    best = tmp_path / 'best.pth'
    assert not best.is_symlink() and value(best) == 2 and verify(best)
    assert facts_of(best)['copy_of'] == 'iter_2.pth' and not list(tmp_path.glob('*.part'))
    assert find_checkpoint(tmp_path).name == 'iter_2.pth'
    before = best.stat().st_mtime_ns
    link_best(tmp_path / 'iter_2.pth')  # nothing to do
    assert best.stat().st_mtime_ns == before
    best.write_bytes(best.read_bytes()[:-1] + b'?')
    with pytest.raises(CheckpointError, match='best.pth is damaged: sha256 differs'):
        read_checkpoint(best)


def test_a_link_takes_the_place_of_a_copy(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, 'symlink', lambda *_: (_ for _ in ()).throw(NotImplementedError()))
        link_best(save(tmp_path, 1))
    link_best(save(tmp_path, 2))
    best = tmp_path / 'best.pth'
    assert best.is_symlink() and value(best) == 2 and not manifest_of(best).exists()


def test_no_best_one_ends_no_training(tmp_path, no_links, monkeypatch):
    said = []
    monkeypatch.setattr(saving, 'warn', said.append)

    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    path = save(tmp_path, 1)
    monkeypatch.setattr(saving.shutil, 'copyfile', full)
    link_best(path)
    assert said == [
        'best.pth does not name iter_1.pth: no space left on device. Use iter_1.pth itself.'
    ]
    assert {p.name for p in tmp_path.iterdir()} == {'iter_1.pth', 'iter_1.pth.json'}


def test_a_training_with_a_best_one_on_such_a_disk(tiny, tmp_path, no_links):
    assert once(tmp_path / 'run', tiny | SHORT, rehearsal=False)
    best = tmp_path / 'run' / 'best.pth'
    assert verify(best) and not best.is_symlink()
    assert facts_of(best)['copy_of'] == 'best_mIoU_iter_2.pth'
    card = publish(tmp_path / 'run' / CONFIG.name, best, tmp_path / 'out')['card'].read_text()
    assert ' on the validation data, during training.' in card


@pytest.mark.parametrize('code', [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_disk_that_cannot_sync_folders(tmp_path, monkeypatch, code):
    def refuse(descriptor, real=os.fsync):
        if os.path.isdir(f'/proc/self/fd/{descriptor}'):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(saving.os, 'fsync', refuse)
    assert value(save(tmp_path, 3)) == 3
    monkeypatch.setattr(
        saving.os, 'fsync', lambda _: (_ for _ in ()).throw(OSError(errno.EIO, 'x'))
    )
    monkeypatch.setattr(saving, '_WAIT', 0)
    with pytest.raises(WriteError):  # a disk that fails is no such disk
        save(tmp_path, 4)


def test_a_set_that_lies_elsewhere_without_links(tmp_path, no_links, monkeypatch, capsys):
    from tests.test_tools import tool

    (tmp_path / 'data').mkdir()
    main = tool('prepare_data')
    monkeypatch.setitem(main.__globals__, 'prepare', lambda name: lambda root: None)
    code = main(['coco', '--root', str(tmp_path / 'data'), '--out', str(tmp_path / 'out')])
    said = capsys.readouterr()
    assert code == 0 and f'val_dataloader.dataset.data_root={tmp_path / "data"} ' in said.out
