"""A save that ends anywhere loses nothing, and what is damaged is neither loaded nor resumed."""

import errno
import os
import random
import shutil

import pytest
import torch

from mmattn.checkpoint import find
from mmattn.checkpoint import write as saving
from mmattn.checkpoint.find import find_checkpoint, last_good
from mmattn.checkpoint.manifest import (
    facts_of,
    manifest_of,
    remove_leftovers,
    update_manifest,
    verify,
)
from mmattn.checkpoint.read import read_checkpoint
from mmattn.checkpoint.write import write_pointer
from mmattn.errors import CheckpointError, NonFiniteError, UsageError, WriteError, explain
from mmattn.testing.kill import _fork, _wait, kill_test_saves
from tests.engine.killing import At, once


def save(folder, step, value=None, size=300):
    path = folder / f'iter_{step}.pth'
    weights = dict(weight=torch.full((size,), float(value or step)))
    content = dict(state_dict=weights, meta=dict(iter=step, epoch=0), message_hub={})
    saving.write_checkpoint(path, content, dict(iter=step))
    return path


def value(path):
    return read_checkpoint(path)['state_dict']['weight'][0].item()


@pytest.fixture
def said(monkeypatch):
    found = []
    for module in saving, find:
        monkeypatch.setattr(module, 'warn', found.append)
    return found


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(saving, '_WAIT', 0)


def die_at(monkeypatch, call, names=('fsync', 'replace')):
    """End the process at the n-th call, before it is made."""
    made = dict(n=0)

    def counted(real):
        def do(*args):
            made['n'] += 1
            if made['n'] == call:
                os._exit(9)
            return real(*args)

        return do

    for name in names:
        monkeypatch.setattr(saving.os, name, counted(getattr(os, name)))


@pytest.mark.parametrize('step', [2, 1], ids=['new', 'again'])
@pytest.mark.parametrize('call', range(1, 14))
def test_a_kill_at_every_step_of_a_save(tmp_path, monkeypatch, call, step):
    save(tmp_path, 1)
    write_pointer(tmp_path / 'iter_1.pth')

    def job():
        die_at(monkeypatch, call)
        write_pointer(save(tmp_path, step, 5))

    status = _wait(_fork(job, tmp_path / 'output.txt'), None)
    steps = 9 if step == 2 else 12  # calls that a save makes: the test sees all of them
    assert status == (9 if call <= steps else 0), (tmp_path / 'output.txt').read_text()
    found = find_checkpoint(tmp_path)
    whole = {'iter_1.pth': {1, 5} if step == 1 else {1}, 'iter_2.pth': {5}}
    assert value(found) in whole[found.name]
    if call > steps:
        assert value(found) == 5
    remove_leftovers(tmp_path)
    assert not list(tmp_path.glob('*.part'))


def test_kills_in_a_loop_of_saves(tmp_path):
    kill_test_saves(6, 0, tmp_path, lambda text: None)
    with pytest.raises(UsageError, match='is not empty'):  # a second run on what it left
        kill_test_saves(6, 0, tmp_path, lambda text: None)


def test_the_loop_of_saves_sees_a_loss(tmp_path, monkeypatch):
    """Red here means that the test above cannot fail."""
    from mmattn.testing import kill
    from mmattn.testing.kill import ResumeMismatch

    def careless(path, content, facts):  # removes first, writes in place
        for old in path.parent.glob('iter_*.pth*'):
            old.unlink()
        torch.save(content, path)
        manifest_of(path).write_text('{}')

    monkeypatch.setattr(kill, 'write_checkpoint', careless)
    with pytest.raises(ResumeMismatch, match='was saved, 0 is left'):
        kill_test_saves(6, 0, tmp_path, lambda text: None)


# ---- disks ---------------------------------------------------------------------------------------
def test_a_full_disk_keeps_the_old_one_and_says_what_is_missing(tmp_path, monkeypatch):
    save(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(saving.shutil, 'disk_usage', lambda path: usage._replace(free=37_000_000))
    with pytest.raises(
        WriteError, match=r'need 48 MB, 37 MB free in .*; last good: iter_1'
    ) as error:
        save(tmp_path, 2, size=10_000_000)
    assert explain(error.value)[0] == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ['iter_1.pth', 'iter_1.pth.json']


def test_a_file_that_may_not_grow(tmp_path):
    """The system refuses within torch's writer, which raises an error of another kind."""
    import resource

    save(tmp_path, 1)

    def job():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(WriteError, match='last good: iter_1'):
            save(tmp_path, 2, size=1_000_000)

    status = _wait(_fork(job, tmp_path / 'output.txt'), None)
    assert status == 0, (tmp_path / 'output.txt').read_text()
    assert value(find_checkpoint(tmp_path)) == 1 and not list(tmp_path.glob('*.part'))


def test_a_write_that_fails_is_tried_again(tmp_path, monkeypatch):
    fails = [errno.EIO, errno.ENOSPC]

    def sometimes(descriptor, real=os.fsync):
        if fails:
            raise OSError(fails.pop(), 'for a while')
        real(descriptor)

    monkeypatch.setattr(saving.os, 'fsync', sometimes)
    assert value(save(tmp_path, 3)) == 3 and not fails


def test_a_number_that_is_not_finite_is_not_saved(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(NonFiniteError, match='tensor weight holds 300 non-finite values'):
        save(tmp_path, 2, float('nan'))
    assert last_good(tmp_path).name == 'iter_1.pth' and len(list(tmp_path.iterdir())) == 2
    save(tmp_path, 3, 3e38)  # finite, though its sum is not


# ---- damage --------------------------------------------------------------------------------------
def test_flipped_bits_and_cuts_are_found(tmp_path):
    path = save(tmp_path, 1)
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(100):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match='is damaged: sha256 differs from the manifest'):
            read_checkpoint(path)
    for share in 0, 0.1, 0.5, 0.9, 0.99:
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(
            CheckpointError, match=rf'is damaged: size \d+, manifest says {len(whole)}'
        ):
            read_checkpoint(path)


def test_resuming_falls_back_and_names_what_it_skips(tmp_path, said):
    for step in 1, 2, 3, 4:
        path = save(tmp_path, step)
    write_pointer(path)
    path.unlink()
    (tmp_path / 'iter_3.pth').write_bytes(b'<html>')
    manifest_of(tmp_path / 'iter_2.pth').unlink()
    assert find_checkpoint(tmp_path).name == 'iter_1.pth'
    for text in (
        'skipping iter_4: the file is gone',
        'skipping iter_3: checkpoint',
        'Previous good checkpoint: iter_1.pth',
        'skipping iter_2: incomplete (no manifest)',
        'last_checkpoint names iter_4 which does not exist; using iter_1',
    ):
        assert text in ' '.join(said)


def test_a_moved_folder_and_an_empty_pointer(tmp_path):
    old = tmp_path / 'old'
    old.mkdir()
    write_pointer(save(old, 7))
    assert (old / 'last_checkpoint').read_text() == 'iter_7.pth'
    new = tmp_path / 'new'
    old.rename(new)
    (new / 'last_checkpoint').write_text('')
    assert find_checkpoint(new) == new / 'iter_7.pth'


def test_files_of_before_there_were_manifests(tmp_path, said):
    for step in 8, 10:
        path = save(tmp_path, step)
        manifest_of(path).unlink()
    assert not verify(path) and value(path) == 10
    (tmp_path / 'last_checkpoint').write_text('/somewhere/else/iter_8.pth')
    assert find_checkpoint(tmp_path).name == 'iter_8.pth'
    assert 'iter_8.pth has no manifest' in said[0]
    assert find_checkpoint(tmp_path / 'nothing') is None


def test_facts_are_added_and_weights_alone_are_not_resumed(tmp_path):
    path = save(tmp_path, 1)
    update_manifest(path, validated=1)
    assert facts_of(path)['validated'] == 1 and verify(path)
    update_manifest(path, resumable=False)
    assert find_checkpoint(tmp_path) is None


def test_a_file_shorter_than_what_was_written_is_not_kept(tmp_path, monkeypatch):
    old = save(tmp_path, 1)
    real = os.fsync

    def loses(descriptor):
        real(descriptor)
        if os.fstat(descriptor).st_size > 1000:
            os.ftruncate(descriptor, 1000)

    monkeypatch.setattr(saving.os, 'fsync', loses)
    with pytest.raises(WriteError, match='bytes written, 1000 there; last good: iter_1.pth'):
        save(tmp_path, 2)
    assert {p.name for p in tmp_path.glob('*.pth*')} == {old.name, manifest_of(old).name}


# ---- in a training -------------------------------------------------------------------------------
def test_the_newest_one_damaged_resumes_from_the_one_before(tiny, tmp_path):
    from mmattn.testing.kill import compare_records
    from tests.engine.killing import record

    options = tiny | {'train_cfg.max_iters': 4, 'default_hooks.checkpoint.interval': 1}
    options |= {'default_hooks.checkpoint.max_keep_ckpts': 2}
    assert once(tmp_path / 'run', options)
    assert {p.name for p in (tmp_path / 'run').glob('iter_*.pth')} == {'iter_3.pth', 'iter_4.pth'}
    path = tmp_path / 'run' / 'iter_4.pth'
    path.write_bytes(path.read_bytes()[:-1] + b'?')
    assert once(tmp_path / 'run', options, resume='latest')
    whole = record(tmp_path / 'run')  # step 4 was made twice: reading compares them
    assert verify(path)
    compare_records(whole, whole, 'run')


def test_the_best_one_is_given_up_for_a_better_one_only(tiny, tmp_path, monkeypatch):
    """A kill while the best is replaced: one of the two is there, and the link is not broken."""
    from mmattn.evaluation.iou_metric import IoUMetric

    scores = iter([30.0, 40.0, 50.0])
    monkeypatch.setattr(IoUMetric, 'compute_metrics', lambda *args: dict(mIoU=next(scores)))
    options = tiny | {'train_cfg.max_iters': 4, 'train_cfg.val_interval': 2}
    folder = tmp_path / 'run'

    def killed_in_save(runner):
        from tests.engine.killing import kill

        monkeypatch.setattr('mmattn.engine.runner.write_checkpoint', lambda *args: kill(runner))

    assert not once(folder, options, At('before_val_iter', 4, killed_in_save))
    monkeypatch.undo()
    left = sorted(p.name for p in folder.glob('best*.pth'))
    assert left == ['best.pth', 'best_mIoU_iter_2.pth'] and (folder / 'best.pth').exists()
    monkeypatch.setattr(IoUMetric, 'compute_metrics', lambda *args: dict(mIoU=60.0))
    assert once(folder, options, resume='latest')  # validates what was not
    assert (folder / 'best.pth').resolve().name == 'best_mIoU_iter_4.pth'
    assert sorted(p.name for p in folder.glob('best*.pth')) == ['best.pth', 'best_mIoU_iter_4.pth']
