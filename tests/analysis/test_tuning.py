"""Tuning: which trials run, go on or fail, what is drawn, and what is said of the best."""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import cv2
import pytest
import torch

from mmattn import compat
from mmattn.analysis import tuning as module
from mmattn.analysis.ablation import RunsFailed
from mmattn.analysis.tuning import TuneOptions, tune
from mmattn.analysis.tuning_space import Range, check_space, parse_space
from mmattn.cli.main import main
from mmattn.errors import DataError, MemoryShortage, NonFiniteError, Stopped, UsageError
from mmattn.visualization.curves import read_scalars
from tests.conftest import ROOT, tiny_options
from tests.engine.killing import SMALL

CONFIG = str(ROOT / 'configs' / 'fcn_r18_street.py')
LR = 'optim_wrapper.optimizer.lr'
SPACE = [f'{LR}=log:1e-4:1e-2', 'attention=none|se']
HOLD = (
    'import fcntl, sys; file = open(sys.argv[1], "a"); fcntl.lockf(file, fcntl.LOCK_EX); '
    'print("held", flush=True); sys.stdin.read()'
)


class Quick:
    """Trainings that take no time: two validations, better with a larger learning rate.

    Attributes:
        calls: folder, blocks and learning rate of each.
        raised: number of the call -> what it raises after the first validation.
        scores: number of the call -> metric, if it is not made of the learning rate.
    """

    def __init__(self):
        self.calls, self.raised, self.scores = [], {}, {}

    def __call__(self, config, options):
        (hook,) = options.hooks
        values = dict(pair.split('=') for pair in options.cfg_options)
        number, rate = len(self.calls), float(values[LR])
        self.calls.append((options.work_dir.name, options.attention, rate))
        loop = SimpleNamespace(stop_training=False)
        runner = SimpleNamespace(iter=0, train_loop=loop, logger=logging.getLogger('quick'))
        while runner.iter < 2 and not loop.stop_training:
            runner.iter += 1
            score = self.scores.get(number, 100 * rate) - runner.iter
            hook.after_val_epoch(runner, dict(aAcc=1.0, mIoU=score))
            if number in self.raised:
                raise self.raised[number]


@pytest.fixture
def quick(monkeypatch):
    trainings = Quick()
    monkeypatch.setattr(module, 'train', trainings)
    return trainings


def study(folder, trials=3, space=SPACE, said=None, **options):
    given = TuneOptions(work_dir=folder, trials=trials, **options)
    return tune(CONFIG, list(space), given, log=(said if said is not None else []).append)


def test_a_study_goes_on_with_what_is_missing_and_draws_the_same(quick, tmp_path):
    said = []
    study(tmp_path / 'a', 3, said=said)
    assert said[0] == 'mIoU: more is better; 2 keys' and '[1/3] trial_0: ' in said[1]
    results = study(tmp_path / 'a', 5)
    assert [name for name, _, _ in quick.calls] == [f'trial_{k}' for k in range(5)]
    assert len({rate for _, _, rate in quick.calls}) == 5
    assert {blocks for _, blocks, _ in quick.calls} == {None, 'se'}
    calls, quick.calls = quick.calls, []
    assert study(tmp_path / 'a', 5) == results and not quick.calls
    study(tmp_path / 'b', 5)
    assert quick.calls == calls
    quick.calls = []
    study(tmp_path / 'c', 1, seed=7)
    assert quick.calls[0][1:] != calls[0][1:]


def test_the_best_is_first_with_its_command_and_a_picture(quick, tmp_path):
    results = study(tmp_path, 4, cfg_options=['randomness.seed=3'])
    best = max(quick.calls, key=lambda call: call[2])
    assert f'trial_{results[0].number}' == best[0] and results[0].step == 1
    assert results[0].value == pytest.approx(100 * best[2] - 1)
    content = json.loads((tmp_path / 'results.json').read_text())
    assert content['metric'] == 'mIoU' and [t['number'] for t in content['trials']] == [
        r.number for r in results
    ]
    blocks = ['--attention', best[1]] if best[1] else []
    options = ['--cfg-options', 'randomness.seed=3', f'{LR}={best[2]!r}']
    assert shlex.split(content['command']) == ['mmattn', 'train', CONFIG, *blocks, *options]
    text = (tmp_path / 'results.md').read_text()
    assert content['command'] in text and f'| {best[0]} | {results[0].value:.2f} | 1 | ' in text
    assert cv2.imread(str(tmp_path / 'trials.png')).std() > 5


@pytest.mark.parametrize(
    'error', [KeyboardInterrupt(), Stopped('stopped. Run again with --resume.')]
)
def test_an_interrupted_trial_is_run_again(quick, tmp_path, error):
    quick.raised = {1: error}
    message = '^trial_1: stopped. The same command goes on with it.$' if error.args else None
    with pytest.raises(type(error), match=message):
        study(tmp_path)
    results = study(tmp_path)
    names = [name for name, _, _ in quick.calls]
    assert names == ['trial_0', 'trial_1', 'trial_1', 'trial_2']
    assert quick.calls[1] == quick.calls[2]
    assert [r.state for r in results] == ['complete'] * 3


def test_what_another_process_runs_is_left_to_it(quick, tmp_path):
    quick.raised = {1: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path)
    command = [sys.executable, '-c', HOLD, str(tmp_path / 'trial_1' / 'trial.lock')]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b'held\n'
        results = study(tmp_path)
        assert [r.state for r in results] == ['complete', 'complete', 'running']
        other.stdin.close()
    assert [name for name, _, _ in quick.calls] == ['trial_0', 'trial_1', 'trial_2']
    assert [r.state for r in study(tmp_path)] == ['complete'] * 3


def test_a_trial_that_fails_has_its_reason_and_the_study_goes_on(quick, tmp_path):
    quick.raised = {
        0: MemoryShortage('out of memory at iteration 2.'),
        2: NonFiniteError('loss|nan.'),
    }
    quick.scores = {3: float('nan')}
    results = study(tmp_path, 5)
    assert [r.state for r in results] == ['complete'] * 2 + ['failed'] * 3
    text = (tmp_path / 'results.md').read_text()
    assert 'failed: out of memory at iteration 2. |' in text and 'failed: loss/nan. |' in text
    assert 'failed: no validation gave a finite mIoU. |' in text
    quick.calls, quick.raised = [], {0: MemoryShortage('out.'), 1: MemoryShortage('of memory.')}
    with pytest.raises(
        RunsFailed, match='all 2 trials failed:\ntrial_0: out.\ntrial_1: of memory.'
    ):
        study(tmp_path / 'all', 2)
    quick.calls, quick.raised = [], {0: DataError('an image is damaged.')}
    with pytest.raises(DataError):  # no fault of the settings: all trials would fail
        study(tmp_path / 'data', 2)
    with pytest.raises(UsageError, match='--metric PQ is not validated: .* gives aAcc, mIoU.'):
        study(tmp_path / 'metric', 2, metric='PQ')


def test_a_trial_below_the_median_is_stopped(quick, tmp_path, monkeypatch):
    quick.scores = {0: 50, 1: 60, 2: 10, 3: 55.5}
    results = study(tmp_path / 'a', 4, startup_trials=2)
    assert [(r.number, r.state, r.step) for r in results] == [
        (1, 'complete', 1), (3, 'complete', 1), (0, 'complete', 1), (2, 'stopped early', 1),
    ]  # fmt: skip
    assert '| trial_2 | 9.00 | 1 | ' in (tmp_path / 'a' / 'results.md').read_text()
    quick.calls.clear()
    states = [r.state for r in study(tmp_path / 'b', 4, startup_trials=9)]
    assert states == ['complete'] * 4
    quick.calls.clear()  # less is better: the third is the best
    quick.scores = {0: 0.5, 1: 0.6, 2: 0.1, 3: 0.9}
    monkeypatch.setattr(module, '_objective', lambda *_: ('mIoU', False))
    results = study(tmp_path / 'c', 4, startup_trials=2)
    assert [(r.number, r.state) for r in results] == [
        (2, 'complete'), (0, 'complete'), (1, 'complete'), (3, 'stopped early'),
    ]  # fmt: skip


def test_a_process_that_ends_after_it_stopped_a_trial(quick, tmp_path, monkeypatch):
    quick.scores, quick.raised = {0: 50, 1: 10}, {1: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, 2, startup_trials=1)
    assert [r.state for r in study(tmp_path, 2, startup_trials=1)] == ['complete', 'stopped early']
    assert len(quick.calls) == 2


@pytest.mark.parametrize(
    'hook, given, wanted',
    [
        (dict(save_best='mIoU'), None, ('mIoU', True)),
        (dict(save_best='loss_val'), None, ('loss_val', False)),
        (dict(save_best=['a', 'b'], rule=['less', 'greater']), None, ('a', False)),
        (dict(save_best='auto'), None, (None, True)),
        (dict(save_best='auto', rule='less'), 'x', ('x', False)),
        (dict(save_best='mIoU', rule='greater'), 'val_loss', ('val_loss', False)),
        (dict(), None, (None, True)),
    ],
)
def test_the_metric_is_that_of_the_best_checkpoint(hook, given, wanted):
    assert module._objective(dict(default_hooks=dict(checkpoint=hook)), given) == wanted


@pytest.mark.parametrize(
    'text, wanted',
    [
        ('a.b=log:1e-5:1e-2', Range('a.b', 'log', 1e-5, 1e-2)),
        ('a=float:-1:.5', Range('a', 'float', -1, 0.5)),
        ('a=int:1:8', Range('a', 'int', 1, 8)),
        ('a=x|y:z|3', Range('a', 'choice', choices=('x', 'y:z', '3'))),
    ],
)
def test_ranges(text, wanted):
    assert parse_space([text]) == [wanted]


@pytest.mark.parametrize(
    'text, problem',
    [
        ('a', 'it needs a key and a range'),
        ('a=', 'it needs a key and a range'),
        ('a=float:1', 'float has two bounds'),
        ('a=int:1.5:2', 'its bounds are no whole numbers'),
        ('a=float:1:b', 'its bounds are no numbers'),
        ('a=float:2:1', 'the first bound has to be below the second'),
        ('a=float:0:inf', 'the first bound has to be below the second'),
        ('a=log:0:1', 'log needs bounds above 0'),
        ('a=lin:0:1', 'it is no range of numbers, and a choice has two values or more'),
        ('a=b|b', 'a choice has two values or more'),
        ('attention=int:1:2', 'blocks are a choice'),
    ],
)
def test_a_wrong_range_shows_the_grammar(text, problem):
    with pytest.raises(UsageError) as error:
        parse_space([text])
    said = str(error.value)
    assert said.startswith(f'--space {text}: ') and problem in said
    assert said.endswith('KEY=float:0:1, KEY=log:1e-5:1e-2, KEY=int:1:8, or a choice, KEY=a|b|c.')


@pytest.mark.parametrize(
    'space, options, message',
    [
        (['optim_wrapper.optimizer.lrr=float:0:1'], {}, 'AdamW has no lrr. Did you mean lr?'),
        (['optim_wraper.lr=float:0:1'], {}, 'key optim_wraper: .* Did you mean optim_wrapper?'),
        (['attention=none|cbma'], {}, 'cbma: no such placement. Did you mean cbam?'),
        (['model.decode_head.type=FCNHead|FCHead'], {}, "'FCHead' is not registered. .*FCNHead"),
        ([*SPACE, SPACE[1]], {}, 'attention has a range already'),
        (SPACE, dict(attention='gc'), 'attention is in --space and in --attention'),
        (SPACE, dict(cfg_options=[f'{LR}=1']), f'{LR} is in --space and in --cfg-options'),
        (SPACE, dict(cfg_options=['val_cfg=None']), 'has no val_cfg: trials are judged by'),
        (SPACE, dict(trials=0), '--trials 0 --startup-trials 5: allowed are numbers from 1'),
        (SPACE, dict(storage='nothing://x'), '--storage: the study cannot be opened: '),
    ],
)
def test_refused(quick, tmp_path, space, options, message):
    with pytest.raises(UsageError, match=message):
        study(tmp_path / 'a', space=space, **options)
    assert not quick.calls


def test_the_space_of_the_documents_is_one():
    page = (ROOT / 'docs' / 'training_options.md').read_text(encoding='utf-8')
    command = page[page.index('mmattn tune configs/') :].partition('```')[0]
    words = shlex.split(command.replace('\\\n', ' '))
    ranges = parse_space(words[words.index('--space') + 1 :])
    assert [r.kind for r in ranges] == ['log', 'int', 'choice']
    check_space(ROOT / words[2], ranges)


def test_a_folder_holds_one_recipe(quick, tmp_path):
    study(tmp_path, 1)
    with pytest.raises(UsageError, match='holds trials of another recipe: it differs in space'):
        study(tmp_path, 2, space=SPACE[:1])
    with pytest.raises(UsageError, match='it differs in sha256'):
        study(tmp_path, 2, cfg_options=['randomness.seed=9'])


def test_without_optuna_the_command_that_installs_it_is_named(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(compat, 'find_spec', lambda _: None)
    with pytest.raises(ImportError, match=r'needs optuna: .* Run: pip install "mmattn\[tune\]"'):
        study(tmp_path / 'a')
    assert not (tmp_path / 'a').exists()


def test_real_trials_and_the_command_of_the_best(street, tmp_path):
    options = SMALL | tiny_options(street) | {'train_cfg.max_iters': 2}
    changes = [f'{key}={value}' for key, value in options.items() if key not in (
        'custom_hooks', 'visualizer.vis_backends')]  # fmt: skip
    arguments = [CONFIG, '--work-dir', str(tmp_path / 'study'), '--no-rehearsal', '--trials', '2']
    arguments += ['--space', *SPACE, '--cfg-options', *changes]
    assert main(['tune', *arguments]) == 0
    content = json.loads((tmp_path / 'study' / 'results.json').read_text())
    best, other = content['trials']
    assert best['state'] == other['state'] == 'complete'
    for trial in best, other:
        folder = tmp_path / 'study' / f'trial_{trial["number"]}'
        assert (folder / 'best.pth').is_file()
        assert trial['value'] == pytest.approx(read_scalars(folder)['mIoU'][2], abs=1e-4)
    before = (folder / 'best.pth').stat().st_mtime_ns
    assert main(['tune', *arguments]) == 0  # nothing is left to do
    assert (folder / 'best.pth').stat().st_mtime_ns == before
    _, command, config, *given = shlex.split(content['command'])
    more = ['--work-dir', str(tmp_path / 'again'), '--no-rehearsal']
    assert main([command, config, *more, *given]) == 0
    folders = tmp_path / 'again', tmp_path / 'study' / f'trial_{best["number"]}'
    ends = [torch.load(f / 'iter_2.pth', weights_only=True)['state_dict'] for f in folders]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(a, b) for a, b in zip(*(end.values() for end in ends), strict=True))


def test_a_lock_is_not_shared_by_data_workers(tmp_path):
    """Which outlive a process that is killed for seconds."""
    path = tmp_path / 'trial.lock'
    with module._lock(path):
        worker = os.fork()
        if not worker:
            time.sleep(60)
            os._exit(0)
    try:
        command = [sys.executable, '-c', HOLD, str(path)]
        done = subprocess.run(command, input=b'', capture_output=True, timeout=20)
        assert done.stdout == b'held\n'
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
