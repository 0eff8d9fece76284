"""The set-up's answers to what a machine lacks; the set-up itself runs before the tests do."""

import importlib.util
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.fixture
def setup_env(monkeypatch, tmp_path):
    """The set-up script with a .venv and a cache of its own."""
    spec = importlib.util.spec_from_file_location('setup_env', ROOT / 'tools' / 'setup_env.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'LOG', tmp_path / 'setup.log')
    monkeypatch.setattr(module, 'CACHE', tmp_path / 'wheels')
    return module


def sentence(call, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    return str(stop.value.code)


def test_nothing_is_done_while_nothing_changes(setup_env, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(setup_env, 'STAMP', tmp_path / 'stamp')
    monkeypatch.setattr(setup_env, 'check_machine', lambda: setup_env.fail('at work'))
    setup_env.STAMP.write_text(setup_env.fingerprint())
    assert setup_env.main() == 0
    assert 'nothing to do' in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(setup_env, 'distributions', lambda path: [])  # as if packages were removed
        assert sentence(setup_env.main) == 'at work'
    setup_env.STAMP.write_text('made from other requirements')
    assert sentence(setup_env.main) == 'at work'


def test_every_file_of_requirements_is_installed(setup_env, monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(setup_env, 'STAMP', tmp_path / 'stamp')
    monkeypatch.setattr(
        setup_env, 'run', lambda title, usual, command, **_: commands.append(command)
    )
    for name in 'check_machine', 'make_venv', 'torch_index':
        monkeypatch.setattr(setup_env, name, list)
    monkeypatch.setattr(setup_env, 'install_mmcv', lambda *_: None)
    monkeypatch.setattr(setup_env, 'succeeds', lambda code: True)
    assert setup_env.main() == 0
    words = [str(word) for command in commands for word in command]
    read = {words[n + 1] for n, word in enumerate(words) if word == '-r'}
    files = {path for path in setup_env.REQUIREMENTS.glob('*.txt') if path.stem != 'mmcv'}
    assert read == set(map(str, files))


def test_wrong_python(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env.sys, 'version_info', (3, 10, 1))
    assert 'need 3.11 or 3.12' in sentence(setup_env.check_machine)


def test_missing_python():
    done = subprocess.run(
        ['make', 'setup', 'PYTHON=python3.nowhere'], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert 'error: python3.nowhere is not on PATH. Install Python 3.11 or 3.12' in done.stderr


def test_full_disk(setup_env, monkeypatch):
    usage = type('Usage', (), dict(free=10**9))
    monkeypatch.setattr(setup_env.shutil, 'disk_usage', lambda _: usage)
    assert 'has 1.0 GB free, the set-up needs 5 GB' in sentence(setup_env.check_machine)


def test_missing_compiler(setup_env, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    assert 'no C++ compiler: no-such-compiler is not on PATH' in sentence(setup_env.check_compiler)


def test_a_failing_step_names_its_cause_and_the_log(setup_env):
    code = 'print("Collecting x"); print("ERROR: no matching distribution"); raise SystemExit(1)'
    text = sentence(setup_env.run, 'step', '1 s', [sys.executable, '-c', code])
    assert 'step failed: ERROR: no matching distribution' in text and 'setup.log' in text


def test_a_wheel_without_operators_is_thrown_away_and_built_again(setup_env, monkeypatch):
    """pip caches what an isolated build of mmcv made, and then prefers it."""
    names = iter(
        ['onedl_mmcv-2.3.6-py3-none-any.whl', f'onedl_mmcv-2.3.6-{python_tag()}-linux.whl']
    )
    calls = []

    def run(title, usual, command, **_):
        calls.append(title)
        folder = command[command.index('-w') + 1]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / next(names)).touch()

    monkeypatch.setattr(setup_env, 'run', run)
    monkeypatch.setattr(setup_env.subprocess, 'run', lambda *_, **__: None)
    monkeypatch.setattr(setup_env, 'ask', lambda _: '2.13.0+cpu')
    wheel = setup_env.mmcv_wheel('onedl-mmcv==2.3.6')
    assert len(calls) == 2 and python_tag() in wheel.name and wheel.exists()
    assert (
        setup_env.mmcv_wheel('onedl-mmcv==2.3.6') == wheel and len(calls) == 2
    )  # never built twice
    monkeypatch.setattr(setup_env, 'ask', lambda _: '2.14.0+cpu')
    names = iter([f'onedl_mmcv-2.3.6-{python_tag()}-linux.whl'])
    assert setup_env.mmcv_wheel('onedl-mmcv==2.3.6') != wheel  # another torch is another build


def python_tag() -> str:
    tag = f'cp{sys.version_info[0]}{sys.version_info[1]}'
    return f'{tag}-{tag}'


@pytest.mark.parametrize(
    'line, shown',
    [
        ('[12/78] c++ -MMD -o nms.o', '12 of 78 files compiled'),
        ('Collecting numpy==2.2.6', 'Collecting numpy==2.2.6'),
        ('  some compiler warning', ''),
    ],
)
def test_progress(setup_env, line, shown):
    assert setup_env.progress(line) == shown


def test_mmcv_operators_run():
    """What `make setup` proves; an mmcv without operators imports and says nothing."""
    import torch
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 11.0, 11.0], [20.0, 20.0, 30.0, 30.0]])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)[1].tolist() == [0, 2]
