"""The commands of docs/training_options.md, as they are written there: four steps each, and resumed after two."""

import re
import shlex
import shutil
import sys

import pytest
import torch

from mmattn.cli.main import main
from mmattn.engine.train import train
from mmattn.errors import UsageError
from mmattn.testing.kill import compare_records
from tests.conftest import ROOT, tiny_options
from tests.engine.killing import CONFIG, SMALL, At, once, record

PAGE = (ROOT / 'docs' / 'training_options.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'^```\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [shlex.split(block.replace('\\\n', ' ')) for block in BLOCKS]
TRAININGS = [command for command in COMMANDS if command[:2] == ['mmattn', 'train']]
# saved after two steps and after four: not between two that accumulate a gradient
STEPS = {'default_hooks.checkpoint.max_keep_ckpts': -1}
RECORDER = """
from unittest.mock import MagicMock
calls = MagicMock()
def __getattr__(name):
    return getattr(calls, name)
"""


def title(command) -> str:
    return ' '.join(word.split('.')[-1] for word in command[4:5])


def run(command, folder, street, *more) -> None:
    """The command, made small."""
    _, name, config, *options = command
    assert config.startswith('configs/')
    end = options.index('--cfg-options') if '--cfg-options' in options else len(options)
    small = {k: v for k, v in SMALL.items() if k != 'visualizer.vis_backends'}
    changes = [f'{key}={value}' for key, value in (small | tiny_options(street) | STEPS).items()]
    flags = ['--work-dir', str(folder), '--no-rehearsal', *more, *options[:end]]
    assert main([name, config, *flags, '--cfg-options', *changes, *options[end + 1 :]]) == 0


@pytest.fixture
def trackers(tmp_path, monkeypatch):
    """Packages in place of those of the services, which keep what they are called with."""
    for name in 'wandb', 'mlflow', 'clearml':
        (tmp_path / f'{name}.py').write_text(RECORDER)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in 'wandb', 'mlflow', 'clearml':
        sys.modules.pop(name, None)


@pytest.mark.parametrize('command', TRAININGS, ids=title)
def test_the_command_trains_and_resumes(command, street, tmp_path, trackers, monkeypatch):
    monkeypatch.chdir(ROOT)
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    run(command, whole, street)
    resumed.mkdir()
    for name in 'iter_2.pth', 'iter_2.pth.json':
        shutil.copy(whole / name, resumed / name)
    run(command, resumed, street, '--resume')
    ends = [torch.load(x / 'iter_4.pth', weights_only=True) for x in (whole, resumed)]
    assert ends[0]['meta']['iter'] == 4
    for key in (
        'state_dict',
        'optimizer',
        'rng',
        *(['ema_state_dict'] if 'EMA' in str(command) else []),
    ):
        assert same(ends[0][key], ends[1][key]), key
    named = re.search(r'type=(\w+)VisBackend', str(command))
    if named:
        calls = sys.modules[named[1].lower()].calls
        assert 'mIoU' in str(calls.mock_calls)


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_every_option_of_the_page_has_its_command():
    titles = re.findall(r'^## (.*)$', PAGE, re.MULTILINE)
    assert len(TRAININGS) == len(titles) - 1  # `tune` has its own tests
    for key in (
        'EarlyStopping',
        'EMA',
        'accumulative',
        'activation_',
        'frozen_',
        'lr_mult',
        'ratio_',
    ):
        assert any(key in str(command) for command in TRAININGS)


def test_a_resumed_run_stops_early_where_an_uninterrupted_one_does(tiny, tmp_path):
    """Validations 2 and 3 bring nothing: the third step is the last of six."""
    hook = dict(type='EarlyStoppingHook', monitor='mIoU', min_delta=1000, patience=2)
    options = tiny | STEPS | {'train_cfg.max_iters': 6, 'train_cfg.val_interval': 1}
    options |= {'default_hooks.early_stopping': hook, 'default_hooks.checkpoint.interval': 1}
    assert once(tmp_path / 'whole', options)
    assert sorted(record(tmp_path / 'whole')) == ['1', '2', '3', 'end']
    for stage, step in ('before_val_iter', 2), ('before_train_iter', 3):
        assert not once(tmp_path / 'killed', options, At(stage, step), resume='auto')
    assert once(tmp_path / 'killed', options, resume='auto')
    compare_records(record(tmp_path / 'killed'), record(tmp_path / 'whole'), 'killed')
    assert once(tmp_path / 'killed', options, resume='auto')  # what was stopped stays so
    assert '4' not in record(tmp_path / 'killed')
    log = max((tmp_path / 'killed').glob('*/*.log')).read_text()
    assert 'early stopping has ended this run: mIoU is ' in log
    (tmp_path / 'killed.jsonl').unlink()
    patient = options | {'default_hooks.early_stopping': hook | dict(patience=3)}
    assert once(tmp_path / 'killed', patient, resume='auto')
    assert sorted(record(tmp_path / 'killed')) == ['4', 'end']


@pytest.mark.parametrize(
    'kind, package', [('Wandb', 'wandb'), ('MLflow', 'mlflow'), ('ClearML', 'clearml')]
)
def test_a_backend_that_is_not_installed_says_how_to_install_it(kind, package, tiny, tmp_path):
    options = tiny | {'visualizer.vis_backends.1.type': f'{kind}VisBackend'}
    message = (
        f'^config key visualizer.vis_backends\\[1\\]: {kind}VisBackend needs {package}: {package} is '
        f'not installed. Run: pip install {package}$'
    )
    with pytest.raises(UsageError, match=message):
        train(CONFIG, work_dir=tmp_path / 'run', cfg_options=options)
    assert not (tmp_path / 'run').exists()
