import subprocess
import sys
import time

import pytest

import mmattn
from mmattn import compat, errors
from mmattn.progress import track
from tests.conftest import ROOT


def test_import_loads_neither_torch_nor_any_mm_package():
    code = 'import sys, mmattn; print([m for m in sys.modules if m.startswith(("torch", "mm", "cv2", "numpy"))])'
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['mmattn']"


@pytest.mark.parametrize(
    'tool',
    sorted(p.stem for p in (ROOT / 'tools').glob('*.py') if p.stem != 'setup_env'),
)
def test_help_loads_nothing_heavy(tool):
    code = (
        'import runpy, sys\n'
        f"sys.argv = ['{tool}', '--help']\n"
        'try:\n'
        f"    runpy.run_path(r'{ROOT / 'tools' / tool}.py', run_name='__main__')\n"
        'except SystemExit as stop:\n'
        "    print(stop.code, [m for m in sys.modules if m in ('torch', 'mmengine', 'cv2')])\n"
    )
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert found.stdout.startswith('usage:') and found.stdout.rstrip().endswith('0 []')


def test_maths_and_blocks_need_no_mmcv():
    code = (
        'import sys, mmattn.ops\n'
        "assert 'mmengine' not in sys.modules\n"
        'import mmattn.blocks\n'
        "print([m for m in sys.modules if m.startswith(('mmcv', 'mmdet', 'mmseg'))])\n"
    )
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == '[]'


def test_every_public_name_exists():
    for name in mmattn.__all__:
        assert getattr(mmattn, name)
    with pytest.raises(AttributeError, match='mmattn has no attribute CBM'):
        _ = mmattn.CBM


def test_compat_is_content_here_and_names_what_is_missing(monkeypatch):
    assert compat.problem() is None
    monkeypatch.setattr(
        compat, 'installed', lambda: {'onedl-mmcv': '2.3.6', 'mmcv': '2.1.0', 'onedl-mmengine': '1'}
    )
    assert 'onedl-mmcv and mmcv are both installed' in compat.problem()
    monkeypatch.setattr(compat, 'LINES', {'mm_nowhere': ('a', 'b')})
    assert compat.problem().startswith('mm_nowhere is not installed. Run make setup')


@pytest.mark.parametrize(
    'error, code, text',
    [
        (errors.UsageError('wrong\x1b[2J'), 2, 'error: wrong\\x1b[2J'),
        (errors.DataError('gone'), 3, 'error: gone'),
        (errors.CheckpointError('bad'), 4, 'error: bad'),
        (MemoryError(), 6, 'out of memory. Lower'),
        (RuntimeError("[enforce fail] can't allocate memory: you tried"), 6, 'out of memory'),
        (PermissionError(13, 'Permission denied', 'f'), 7, 'cannot access f: permission denied'),
        (OSError(28, 'No space left on device', 'f'), 7, 'no space left'),
        (KeyboardInterrupt(), 130, 'interrupted'),
    ],
)
def test_exit_codes(error, code, text, capsys):
    def task():
        raise error

    assert errors.run_tool(task) == code
    shown = capsys.readouterr().err
    assert text in shown and 'Traceback' not in shown
    errors.run_tool(task, verbose=True)
    assert 'Traceback' in capsys.readouterr().err


def test_a_bug_shows_its_traceback(capsys):
    assert errors.run_tool(lambda: 1 / 0) == 1
    shown = capsys.readouterr().err
    assert 'ZeroDivisionError' in shown and 'bug of mmattn' in shown
    assert errors.run_tool(lambda: None) == 0


def test_progress_without_a_terminal(capsys, monkeypatch):
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr(time, 'monotonic', lambda: next(clock))
    assert list(track(iter('abcd'), total=4, title='letters')) == list('abcd')
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == 'letters: 2 of 4, 14 s left'
    assert lines[-1].startswith('letters: 4 in')
