"""A command reads its checkpoint in full once, and its config once. Hashing the file is no read."""

import gc
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmattn.checkpoint import read
from mmattn.checkpoint.find import open_latest
from mmattn.checkpoint.read import open_checkpoint
from mmattn.engine.network import build_model
from mmattn.engine.test import test as evaluate
from mmattn.engine.train import train
from tests.conftest import ROOT, tiny_options
from tests.test_tools import flags, tool

CONFIG = ROOT / 'configs/ccnet_r18_street.py'


@pytest.fixture(scope='module')
def trained(street, tmp_path_factory):
    """A work dir of two steps with attention that was added, and options of the run."""
    options = tiny_options(street) | {'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2}
    folder = tmp_path_factory.mktemp('opened') / 'run'
    train(CONFIG, work_dir=folder, cfg_options=options, attention='se', seed=1, rehearsal=False)
    return folder, options


@pytest.fixture(scope='module')
def published(trained, tmp_path_factory):
    """A folder of published weights, of which a command finds the right file itself."""
    folder = tmp_path_factory.mktemp('published')
    assert (
        tool('publish')([str(CONFIG), str(trained[0] / 'best.pth'), '--out-dir', str(folder)]) == 0
    )
    return folder


@pytest.fixture
def reads(monkeypatch):
    """How often each checkpoint is read in full, and each config."""
    found = Counter()
    load, load_file, parse = torch.load, read.load_file, Config._file2dict

    def counted_load(file, *args, map_location=None, **more):
        if isinstance(file, str | Path) and map_location != 'meta':  # else no tensor is read
            found[Path(file).resolve()] += 1
        return load(file, *args, map_location=map_location, **more)

    def counted_load_file(file, *args, **more):
        found[Path(file).resolve()] += 1
        return load_file(file, *args, **more)

    def counted_parse(filename, *args, **more):
        found[Path(filename).resolve()] += 1
        return parse(filename, *args, **more)

    monkeypatch.setattr(torch, 'load', counted_load)
    monkeypatch.setattr(read, 'load_file', counted_load_file)
    monkeypatch.setattr(Config, '_file2dict', staticmethod(counted_parse))
    return found


def check(reads, checkpoint):
    assert reads[Path(checkpoint).resolve()] == 1, reads
    assert reads[CONFIG.resolve()] == 1, reads


@pytest.mark.parametrize('kind', ['best.pth', 'safetensors', 'folder'])
@pytest.mark.parametrize('command', ['test', 'infer'])
def test_to_use_weights(command, kind, trained, published, street, reads, tmp_path):
    folder, options = trained
    (weights,) = published.glob('*.safetensors')
    checkpoint = dict(safetensors=weights, folder=weights).get(kind, folder / kind)
    named = published if kind == 'folder' else checkpoint
    image = min((street / 'leftImg8bit/test').rglob('*.png'))
    more = ['--work-dir', tmp_path] if command == 'test' else [image, '--out-dir', tmp_path]
    arguments = [CONFIG, named, *more, *flags(options)]
    assert tool(command)([str(a) for a in arguments]) == 0
    check(reads, checkpoint)


def test_to_publish(trained, reads, tmp_path):
    checkpoint = trained[0] / 'best.pth'
    assert tool('publish')([str(CONFIG), str(checkpoint), '--out-dir', str(tmp_path)]) == 0
    check(reads, checkpoint)
    for file in (*tmp_path.glob('*.pth'), *tmp_path.glob('*.safetensors')):  # they are read back
        assert reads[file.resolve()] == 1


@pytest.mark.parametrize('how', ['latest', 'auto', 'path'])
def test_to_resume(how, trained, reads, tmp_path):
    folder, options = trained
    copy = tmp_path / 'run'
    shutil.copytree(folder, copy, symlinks=True)
    source = copy / 'iter_2.pth'
    resume = ['--resume', str(source)] if how == 'path' else ['--resume', how]
    longer = flags(options | {'train_cfg.max_iters': 3})
    arguments = [CONFIG, '--work-dir', copy, *resume, '--no-rehearsal', *longer]
    assert tool('train')([str(a) for a in arguments]) == 0
    check(reads, source)
    assert (copy / 'iter_3.pth').exists()


def test_to_train(trained, street, reads, tmp_path):
    folder, options = trained
    arguments = [CONFIG, '--work-dir', tmp_path, '--init-from', folder / 'best.pth']
    arguments += ['--attention', 'se', '--no-rehearsal', *flags(options)]
    assert tool('train')([str(a) for a in arguments]) == 0
    check(reads, folder / 'best.pth')


def test_an_open_checkpoint_goes_where_its_path_goes(trained, reads, tmp_path):
    folder, options = trained
    path = folder / 'best.pth'
    opened = open_checkpoint(path)
    assert open_checkpoint(opened) is opened
    model, _ = build_model(CONFIG, opened, options, device='cpu')
    assert torch.equal(model.state_dict()['decode_head.conv_seg.bias'],
                       opened.state_dict['decode_head.conv_seg.bias'])  # fmt: skip
    by_object = evaluate(CONFIG, opened, work_dir=tmp_path / 'a', cfg_options=options)
    assert reads[path.resolve()] == 1
    by_path = evaluate(CONFIG, path, work_dir=tmp_path / 'b', cfg_options=options)
    assert by_object['mIoU'] == by_path['mIoU']
    train(
        CONFIG, work_dir=tmp_path / 'c', cfg_options=options | {'train_cfg.max_iters': 1},
        attention='se', init_from=open_checkpoint(path), validate=False, rehearsal=False,
    )  # fmt: skip
    assert (tmp_path / 'c' / 'iter_1.pth').exists()


def test_memory_of_a_resumed_run_is_freed(trained, tmp_path):
    """The state of the optimizer is not held by what `train` still has of the checkpoint."""
    from mmengine.hooks import Hook

    folder, options = trained
    opened, held = open_latest(folder), []

    class Looks(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            gc.collect()
            held.append(opened._content)

    train(CONFIG, work_dir=tmp_path, cfg_options=options | {'train_cfg.max_iters': 3}, resume=opened,
          validate=False, rehearsal=False, hooks=[Looks()])  # fmt: skip
    assert held == [None]
    assert opened.meta['iter'] == 2 and 'optimizer' in opened.content  # read again on demand
