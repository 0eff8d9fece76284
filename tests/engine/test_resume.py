"""A training that is killed and resumed gives bit for bit what it gives without."""

import os
import random
import re
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, DefaultSampler, InfiniteSampler, pseudo_collate
from torch.utils.data import DataLoader, Dataset

from mmattn.checkpoint.fingerprint import check_fingerprint, config_fingerprint
from mmattn.checkpoint.manifest import facts_of
from mmattn.checkpoint.write import write_checkpoint
from mmattn.engine.resume import data as resume_data
from mmattn.engine.resume.data import ResumableLoader, prepare_dataloader_cfg
from mmattn.engine.resume.rng import derive_seed, get_rng_state, seeded, set_rng_state
from mmattn.errors import CheckpointError, DataError, UsageError, WriteError
from mmattn.testing.kill import ResumeMismatch, compare_records, kill_test
from tests.conftest import ROOT
from tests.engine.killing import CONFIG, DETECTOR, SMALL, At, once, record

SHORT = {'train_cfg.max_iters': 6, 'train_cfg.val_interval': 3}
EPOCHS = {
    'train_cfg': dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=3, val_interval=2),
    'default_hooks.checkpoint.interval': 1,
    'custom_hooks': [dict(type='EMAHook', momentum=0.1)],
    'optim_wrapper.accumulative_counts': 2,
    'train_dataloader.batch_size': 1,
    'train_dataloader.sampler': dict(_delete_=True, type='DefaultSampler', shuffle=True),
}


# ---- whole trainings -------------------------------------------------------------------------------
def test_five_kills_in_one_run_change_nothing(tiny, tmp_path):
    options = tiny | SHORT
    assert once(tmp_path / 'whole', options)
    stages = [
        ('before_train_iter', 2, 'HIGHEST'),  # nothing is saved yet
        ('after_train_iter', 3, 'LOWEST'),
        ('before_val_iter', 3, 'NORMAL'),
        ('after_val_epoch', 3, 'LOWEST'),
        ('after_train_iter', 6, 'HIGHEST'),  # the step is made and not saved
    ]
    for stage, step, priority in stages:
        killer = At(stage, step, priority=priority)
        assert not once(tmp_path / 'killed', options, killer, resume='auto')
    assert once(tmp_path / 'killed', options, resume='auto')
    compare_records(record(tmp_path / 'killed'), record(tmp_path / 'whole'), 'killed')
    left = [sorted(p.name for p in (tmp_path / n).glob('*.pth')) for n in ('whole', 'killed')]
    assert left[0] == left[1] and 'iter_6.pth' in left[0] and len(left[0]) == 3  # last, best, link
    # resuming what is finished does nothing
    before = (tmp_path / 'killed' / 'iter_6.pth').stat().st_mtime_ns
    assert once(tmp_path / 'killed', options, resume='latest')
    compare_records(record(tmp_path / 'killed'), record(tmp_path / 'whole'), 'killed')
    assert (tmp_path / 'killed' / 'iter_6.pth').stat().st_mtime_ns == before


def test_without_the_randomness_of_the_network_it_is_not_exact(tiny, tmp_path):
    """Red here means that the comparison of the other tests cannot fail."""
    options = tiny | {'train_cfg.max_iters': 4, 'train_cfg.val_interval': 99}
    assert once(tmp_path / 'whole', options)
    assert not once(tmp_path / 'killed', options, At('before_train_iter', 4))
    path = tmp_path / 'killed' / 'iter_2.pth'
    content = torch.load(path, weights_only=True)
    del content['rng']
    write_checkpoint(path, content, facts_of(path))
    assert once(tmp_path / 'killed', options, resume='latest')
    with pytest.raises(ResumeMismatch, match='step 3 repeated gives'):
        compare_records(record(tmp_path / 'killed'), record(tmp_path / 'whole'), 'killed')


def test_saving_validating_logging_and_drawing_change_nothing(tiny, tmp_path):
    rare = {'train_cfg.val_interval': 99, 'default_hooks.checkpoint.interval': 99}
    often = {'train_cfg.val_interval': 1, 'default_hooks.checkpoint.interval': 1}
    often |= {'default_hooks.visualization': dict(type='SegVisualizationHook', draw=True)}
    assert once(tmp_path / 'rare', tiny | rare | {'default_hooks.logger.interval': 99})
    none = dict.fromkeys(('val_cfg', 'val_dataloader', 'val_evaluator'))  # as mmengine allows
    assert once(tmp_path / 'none', tiny | rare | none)
    compare_records(record(tmp_path / 'none'), record(tmp_path / 'rare'), 'none')
    assert once(tmp_path / 'often', tiny | often | {'default_hooks.logger.interval': 1})
    compare_records(record(tmp_path / 'often'), record(tmp_path / 'rare'), 'often')


def test_epochs_averages_accumulated_gradients_and_workers(tiny, tmp_path):
    options = {k: v for k, v in tiny.items() if not k.startswith('train_cfg')} | EPOCHS
    hook = {'default_hooks.checkpoint.by_epoch': False}
    assert once(tmp_path / 'whole', options | hook | {'default_hooks.checkpoint.interval': 99})
    workers = {'train_dataloader.num_workers': 1, 'default_hooks.checkpoint.interval': 1}
    for step in 4, 7, 11:  # within an epoch, and between the halves of an optimizer's step
        killer = At('before_train_iter', step)
        assert not once(tmp_path / 'killed', options | hook | workers, killer, resume='auto')
        workers = {'train_dataloader.num_workers': 0, 'default_hooks.checkpoint.interval': 1}
    assert once(tmp_path / 'killed', options | hook, resume='auto')
    assert len(record(tmp_path / 'killed')) == 13
    compare_records(record(tmp_path / 'killed'), record(tmp_path / 'whole'), 'killed')


def test_gradients_that_accumulate_over_the_border_of_an_epoch(tiny, tmp_path):
    """Three to a step, four images to an epoch, saved by epochs."""
    options = {k: v for k, v in tiny.items() if not k.startswith('train_cfg')} | EPOCHS
    options |= {'optim_wrapper.accumulative_counts': 3, 'default_hooks.checkpoint.by_epoch': True}
    assert once(tmp_path / 'whole', options)
    for step in 6, 10:
        killer = At('before_train_iter', step)
        assert not once(tmp_path / 'killed', options, killer, resume='auto')
        saved = torch.load(tmp_path / 'killed' / f'epoch_{step // 4}.pth', weights_only=True)
        assert saved['gradients']['decode_head.conv_seg.weight'].shape[:2] == (1, 19)
    assert once(tmp_path / 'killed', options, resume='auto')
    assert len(record(tmp_path / 'killed')) == 13
    compare_records(record(tmp_path / 'killed'), record(tmp_path / 'whole'), 'killed')


def test_mixed_precision_goes_on_with_its_scale(tiny, tmp_path, monkeypatch):
    """By torch's scaler for CPUs; a scale that is no power of two rounds, so a lost one is seen."""
    wrapper = 'mmengine.optim.optimizer.amp_optimizer_wrapper'
    monkeypatch.setattr(f'{wrapper}.is_cuda_available', lambda: True)
    monkeypatch.setattr(f'{wrapper}.GradScaler', partial(torch.amp.GradScaler, 'cpu'))
    options = tiny | {
        'optim_wrapper.type': 'AmpOptimWrapper',
        'optim_wrapper.loss_scale': dict(  # too large for the first step, which is skipped
            init_scale=2e38, backoff_factor=1e-34, growth_factor=1.7, growth_interval=2
        ),
        'model.decode_head.loss_decode.loss_weight': 1e4,
        'train_cfg.max_iters': 5,
        'train_cfg.val_interval': 99,
        'default_hooks.checkpoint.interval': 2,
    }
    assert once(tmp_path / 'whole', options)
    log = next((tmp_path / 'whole').rglob('*.log')).read_text()
    assert re.findall('gradient scaler skipped.*', log) == [
        'gradient scaler skipped a step, scale 20000'
    ]
    assert not once(tmp_path / 'killed', options, At('before_train_iter', 4))
    assert once(tmp_path / 'killed', options, resume='latest')
    compare_records(record(tmp_path / 'killed'), record(tmp_path / 'whole'), 'killed')
    ends = [torch.load(tmp_path / n / 'iter_5.pth', weights_only=True) for n in ('whole', 'killed')]
    scalers = [end['optimizer']['loss_scaler'] for end in ends]
    assert scalers[0] == scalers[1] and scalers[0]['scale'] == pytest.approx(2e4 * 1.7**2)


def test_groups_of_parameters_with_settings_of_their_own(tiny, tmp_path, monkeypatch):
    settings = dict(norm_decay_mult=0.0, custom_keys=dict(decode_head=dict(lr_mult=10.0)))
    short = {'train_cfg.max_iters': 3, 'train_cfg.val_interval': 99}
    options = tiny | short | {'optim_wrapper.paramwise_cfg': settings}
    assert once(tmp_path / 'whole', options)
    assert not once(tmp_path / 'killed', options, At('before_train_iter', 3))
    assert once(tmp_path / 'killed', options, resume='latest')
    compare_records(record(tmp_path / 'killed'), record(tmp_path / 'whole'), 'killed')
    groups = torch.load(tmp_path / 'killed' / 'iter_3.pth', weights_only=True)['optimizer']
    rates = sorted({group['lr'] for group in groups['param_groups']})
    assert len(rates) == 2 and rates[1] == pytest.approx(10 * rates[0])
    said = []
    monkeypatch.setattr('mmattn.engine.optimizer.warn', said.append)
    settings = dict(custom_keys=dict(decode_haed=dict(lr_mult=10.0), decode_head=dict(lr_mult=1.0)))
    assert once(tmp_path / 'wrong', options | {'optim_wrapper.paramwise_cfg': settings})
    assert [text for text in said if 'custom_keys' in text] == [
        "optim_wrapper.paramwise_cfg.custom_keys: 'decode_haed' is in the name of no parameter. "
        'Did you mean decode_head?'
    ]


def test_a_detector_whose_batches_are_grouped_by_aspect_ratio(street, tiny, tmp_path):
    options = tiny | {
        'train_cfg.max_iters': 4,
        'train_cfg.val_interval': 99,
        'default_hooks.checkpoint.interval': 1,
        'train_dataloader.batch_sampler': dict(type='AspectRatioBatchSampler'),
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        'model.neck.in_channels': [8, 16, 32, 64],
        'custom_hooks': [],
    }
    assert once(tmp_path / 'whole', options, config=DETECTOR)
    killer = At('before_train_iter', 4)
    assert not once(tmp_path / 'killed', options, killer, config=DETECTOR)
    assert once(tmp_path / 'killed', options, config=DETECTOR, resume='latest')
    compare_records(record(tmp_path / 'killed'), record(tmp_path / 'whole'), 'killed')


def test_a_real_kill_by_the_command(tiny, tmp_path):
    short = {'train_cfg.max_iters': 4, 'train_dataloader.num_workers': 1}
    said = []
    kill_test(CONFIG, 1, 0, tmp_path, SMALL | tiny | short, said.append)
    assert 'kill 1 of 1' in ' '.join(said) and said[-1].endswith(
        'every step and the final state are equal'
    )


TWO = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from mmengine.dist import get_rank
from tests.conftest import tiny_options
from tests.engine.killing import At, once
from mmattn.testing.kill import compare_records
from tests.engine.killing import record
from mmattn.errors import UsageError
out, rank = Path({out!r}), None
import os
rank = os.environ['RANK']
options = tiny_options({street!r}) | {{'train_dataloader.batch_size': 1, 'train_cfg.val_interval': 99}}
options |= {{'train_cfg.max_iters': 4, 'default_hooks.checkpoint.interval': 2}}
class Own:  # a record for each rank beside the shared folder
    def __init__(self, name): self.path = out / name
    def __str__(self): return str(self.path)
    __fspath__ = __str__
    def with_suffix(self, suffix): return out / f'{{self.path.name}}_{{rank}}{{suffix}}'
whole, killed = Own('whole'), Own('killed')
assert once(whole, options, launcher='pytorch')
assert not once(killed, options, At('before_train_iter', 4), launcher='pytorch')
import torch
rows = torch.load(out / 'killed' / 'iter_2.pth', weights_only=True)['rng']
assert len(rows) == 2 and not torch.equal(rows[0], rows[1])
assert once(killed, options, launcher='pytorch', resume='latest')
compare_records(record(killed), record(whole), rank)
assert record(killed)['1'] and len(record(killed)) == 5
"""


def test_two_processes(street, tmp_path, monkeypatch):
    script = tmp_path / 'two.py'
    script.write_text(TWO.format(root=str(ROOT), out=str(tmp_path), street=str(street)))
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    # fewer processes than wrote it
    with pytest.raises(UsageError, match='written by 2 ranks, this run has 1; global batch 2 -> 1'):
        once(tmp_path / 'killed', two_options(street), resume='latest')
    allowed = dict(allow_topology_change=True, resume='latest')
    said = []
    monkeypatch.setattr('mmattn.engine.train.warn', said.append)
    assert once(tmp_path / 'killed', two_options(street) | {'train_cfg.max_iters': 5}, **allowed)
    assert said == ['exactness not guaranteed because ranks 2 -> 1']


def two_options(street):
    from tests.conftest import tiny_options

    options = {'train_dataloader.batch_size': 1, 'train_cfg.val_interval': 99}
    return tiny_options(street) | options


# ---- what may not change unseen ---------------------------------------------------------------------
def test_a_changed_config_is_refused_and_named(tiny, tmp_path, capsys):
    options = tiny | {'train_cfg.max_iters': 2}
    assert once(tmp_path / 'run', options)
    changed = options | {'optim_wrapper.optimizer.lr': 0.5, 'train_cfg.max_iters': 3}
    with pytest.raises(UsageError, match=r'optimizer.lr 0.002 -> 0.5. Pass --allow-config-change'):
        once(tmp_path / 'run', changed, resume='latest')
    with pytest.raises(UsageError, match=r'randomness.seed 0 -> 7'):
        once(tmp_path / 'run', options, resume='latest', seed=7)
    assert once(tmp_path / 'run', changed, resume='latest', allow_config_change=True)
    assert 'exactness not guaranteed because optim_wrapper.optimizer.lr 0.002 -> 0.5' in (
        ''.join(capsys.readouterr())
    )


def test_weights_alone_are_not_resumed(tiny, tmp_path):
    torch.save(dict(state_dict={'a': torch.zeros(1)}), tmp_path / 'weights.pth')
    with pytest.raises(CheckpointError, match='no state of a training to resume.*--init-from'):
        once(tmp_path / 'run', tiny, resume=str(tmp_path / 'weights.pth'))


def test_what_does_not_decide_the_course_may_change():
    from mmengine.config import Config

    cfg = dict(
        model=dict(a=1, init_cfg='x'), train_dataloader=dict(batch_size=2, num_workers=2),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=3),
    )  # fmt: skip
    other = dict(
        model=dict(a=1, init_cfg='y'), train_dataloader=dict(batch_size=2, num_workers=0),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=9),
    )  # fmt: skip
    course = config_fingerprint(Config(cfg))
    assert course == config_fingerprint(Config(other)) and course['model.a'] == '1'
    meta = dict(world=1, batch=2, course=dict(course, extra='1'))
    with pytest.raises(UsageError, match='extra 1 -> absent'):
        check_fingerprint(meta, course, 1, 2, topology=False, config=False)
    assert check_fingerprint(meta, course, 2, 2, topology=True, config=True) == [
        'ranks 1 -> 2',
        'extra 1 -> absent',
    ]
    assert check_fingerprint({}, course, 1, 2, topology=False, config=False)  # of a release before


# ---- the stream of samples ---------------------------------------------------------------------------
class Numbers(Dataset):
    """Index, and what three generators draw for it."""

    def __init__(self, length=10, dies=None, fails=None):
        self.length, self.dies, self.fails = length, dies, fails

    def __len__(self):
        return self.length

    def get_data_info(self, index):
        wide = index % 3 == 0
        return dict(img_id=100 + index, width=2 if wide else 1, height=1 if wide else 2)

    def __getitem__(self, index):
        if index == self.dies:
            os.kill(os.getpid(), signal.SIGSEGV)
        if index == self.fails:
            raise IndexError('tuple index out of range')
        return dict(inputs=[index, random.random(), np.random.rand(), torch.rand(()).item()])


def batches(sampler=InfiniteSampler, grouped=False, workers=0, dataset=None, seed=0):
    dataset = dataset or Numbers()
    made = sampler(dataset, shuffle=True, seed=0)
    arguments = prepare_dataloader_cfg(dict(num_workers=workers), seed)
    init = arguments['worker_init_fn']
    rest = dict(
        num_workers=workers, collate_fn=pseudo_collate, generator=arguments['generator'],
        worker_init_fn=lambda i: init['type'](i, init['then']),
    )  # fmt: skip
    if grouped:
        from mmdet.datasets.samplers import AspectRatioBatchSampler

        kind = AspectRatioBatchSampler(made, 3)
        return ResumableLoader(DataLoader(dataset, batch_sampler=kind, **rest), seed)
    return ResumableLoader(DataLoader(dataset, sampler=made, batch_size=3, **rest), seed)


def drawn(stream, steps):
    return [torch.as_tensor(np.array(next(stream)['inputs'])).tolist() for _ in range(steps)]


@pytest.mark.parametrize('grouped', [False, True])
@pytest.mark.parametrize('sampler', [InfiniteSampler, DefaultSampler])
def test_every_step_can_be_begun_at(sampler, grouped):
    whole = drawn(batches(sampler, grouped), 12)
    for step in range(12):
        stream = batches(sampler, grouped)
        stream.skip_iter(step)
        random.seed(step), np.random.seed(step), torch.manual_seed(step)
        assert drawn(stream, 12 - step) == whole[step:]


@pytest.mark.parametrize('workers', [1, 2])
def test_workers_load_the_same(workers):
    stream = batches(workers=workers)
    stream.skip_iter(2)
    assert drawn(stream, 6) == drawn(batches(), 8)[2:]
    stream.close()


def test_an_epoch_has_every_sample_once_and_no_epoch_repeats_another():
    seen = [x for step in drawn(batches(), 10) for x in zip(*step)]
    epochs = [seen[:10], seen[10:20], seen[20:]]
    assert all(sorted(x[0] for x in epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(x[0] for x in epoch) for epoch in epochs}) == 3
    assert len({x[1:] for x in seen}) == 30  # an image is augmented in another way every time


def test_processes_share_an_epoch(monkeypatch):
    seen = []
    for rank in 0, 1:
        monkeypatch.setattr(resume_data, 'get_dist_info', lambda rank=rank: (rank, 2))
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, 2))
        stream = batches(DefaultSampler, dataset=Numbers(9))
        assert len(stream.loader) == 2
        seen += [x[0] for step in drawn(stream, 2) for x in zip(*step)]
    assert len(seen) == 10 and set(seen) == set(range(9))  # one fills the last slot


def test_drawing_leaves_the_generators_as_they_were():
    before = get_rng_state()
    with seeded(3):
        random.random(), np.random.rand(), torch.rand(3)
    assert torch.equal(get_rng_state(), before)
    drawn(batches(), 3)
    assert torch.equal(get_rng_state(), before)


def test_the_generators_come_back_to_the_bit():
    random.gauss(0, 1), np.random.randn(), torch.rand(1)
    state = get_rng_state()
    first = random.gauss(0, 1), np.random.randn(), torch.rand(1).item()
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    set_rng_state(torch.stack([state, state])[1])
    assert (random.gauss(0, 1), np.random.randn(), torch.rand(1).item()) == first


def test_a_seed_is_the_same_in_every_process():
    command = [
        sys.executable,
        '-c',
        'from hashlib import blake2b as b; print(int.from_bytes(b(repr((0, "order", 1)).encode(), digest_size=8).digest(), "big") >> 1)',
    ]
    assert derive_seed(0, 'order', 1) == int(subprocess.check_output(command))


def test_attributes_of_the_data_set_are_reached():
    inner = BaseDataset(lazy_init=True, pipeline=[], metainfo=dict(classes=('a',)))
    outer = resume_data.ResumableDataset(inner, 0, True, 4)
    assert outer.metainfo['classes'] == ('a',)
    outer.pipeline = 'other'
    assert inner.pipeline == 'other'
    assert not hasattr(outer, 'nothing')


def test_a_sampler_with_a_state_of_its_own_is_left_alone():
    class Own(DefaultSampler):
        pass

    stream = batches(Own)
    assert not stream.deterministic and stream.sampler_name == 'Own'


# ---- workers that die --------------------------------------------------------------------------------
def test_a_worker_that_crashes_is_named_with_its_samples():
    stream = batches(workers=1, dataset=Numbers(dies=7))
    with pytest.raises(RuntimeError) as error:
        drawn(stream, 5)
    known = stream.worker_error(error.value)
    assert isinstance(known, DataError) and '107' in str(known)
    assert str(known).startswith('a data worker died (SIGSEGV) while loading one of')
    stream.close()


@pytest.mark.parametrize('workers', [0, 1])
def test_a_sample_that_a_step_fails_on_is_named(workers):
    stream = batches(workers=workers, dataset=Numbers(fails=7))
    with pytest.raises(DataError, match='^sample 107 cannot be loaded: IndexError: tu'):
        drawn(stream, 5)
    stream.close()


def test_shared_memory_that_is_too_small():
    text = 'DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that'
    known = batches().worker_error(RuntimeError(text))
    assert isinstance(known, WriteError) and '--shm-size' in str(known)
    assert (
        batches().worker_error(RuntimeError('Caught ValueError in DataLoader worker process 0'))
        is None
    )


def test_workers_ignore_the_signals_that_stop_a_training():
    stream = batches(workers=1)
    wanted = drawn(batches(), 8)
    found = drawn(stream, 1)
    for worker in stream._iterator._workers:
        os.kill(worker.pid, signal.SIGTERM), os.kill(worker.pid, signal.SIGINT)
    assert found + drawn(stream, 7) == wanted
    stream.close()
