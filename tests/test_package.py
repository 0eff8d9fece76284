import re
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
    process = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "['mmattn']"


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
    process = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert process.stdout.startswith('usage:') and process.stdout.rstrip().endswith('0 []')


def mmattn_command(*arguments):
    return subprocess.run(
        [sys.executable, '-m', 'mmattn', *arguments], capture_output=True, text=True, cwd=ROOT
    )


def test_every_tool_is_a_command_and_listed():
    from mmattn.cli.common import SUB_COMMANDS
    from mmattn.cli.main import COMMANDS

    tools = {p.stem for p in (ROOT / 'tools').glob('*.py')} - {'setup_env'}
    modules = {p.stem for p in (ROOT / 'mmattn' / 'cli').glob('*.py')}
    parts = {module for names in SUB_COMMANDS.values() for module in names.values()}
    assert tools == set(COMMANDS) - set(SUB_COMMANDS) | parts
    assert set(COMMANDS) | parts == modules - {'__init__', 'common', 'main'}
    process = mmattn_command('--help')
    assert process.returncode == 0
    listed = dict(re.findall(r'^  ([a-z-]+)  +([A-Z].*\.)$', process.stdout, re.MULTILINE))
    assert list(listed) == [name.replace('_', '-') for name in COMMANDS]


@pytest.mark.parametrize(
    'arguments',
    [
        ['--help'],
        ['train', '--help'],
        ['check_data', '--help'],
        ['data', 'import', '--help'],
        ['data', 'browse', '--help'],
        ['nothing'],
    ],
)
def test_the_command_loads_nothing_heavy(arguments):
    code = (
        'import sys\n'
        'from mmattn.cli.main import main\n'
        'try:\n'
        f'    main({arguments})\n'
        'except SystemExit:\n'
        '    pass\n'
        "print([m for m in sys.modules if m in ('torch', 'mmengine', 'cv2', 'numpy')])\n"
    )
    process = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert process.stdout.rstrip().endswith('[]')


@pytest.mark.parametrize('name', ['check-data', 'check_data'])
def test_a_command_by_either_spelling_has_its_own_usage(name):
    process = mmattn_command(name, '--help')
    assert process.returncode == 0 and process.stdout.startswith('usage: mmattn check-data [-h]')
    assert 'Example: mmattn check-data configs/' in process.stdout
    assert 'tools/' not in process.stdout


def test_the_command_without_or_with_an_unknown_command_is_exit_2():
    process = mmattn_command()
    assert process.returncode == 2 and 'commands:\n  prepare-data ' in process.stderr
    process = mmattn_command('chek-data', 'config.py')
    assert process.returncode == 2 and process.stdout == ''
    assert process.stderr.startswith(
        "error: mmattn has no command 'chek-data'; nearest: check-data"
    )
    assert mmattn_command('--version').stdout == f'mmattn {mmattn.__version__}\n'


def test_a_command_with_sub_commands():
    process = mmattn_command('data', 'import', '--help')
    assert process.returncode == 0 and process.stdout.startswith('usage: mmattn data import [-h]')
    assert '  mmattn data import cells --from BCCD\n' in process.stdout
    assert 'tools/' not in process.stdout
    process = mmattn_command('data', 'imprt')
    assert process.returncode == 2 and process.stderr.endswith('Did you mean import?\n')
    process = mmattn_command('data', 'browse', '--help')
    assert process.returncode == 0 and process.stdout.startswith('usage: mmattn data browse [-h]')
    assert 'Example: mmattn data browse configs/' in process.stdout
    assert mmattn_command('data').returncode == 2


def test_a_command_ends_with_the_exit_code_of_its_error(tmp_path):
    process = mmattn_command('exit-code', str(tmp_path))
    assert process.returncode == 8 and process.stderr.startswith('error: ')
    process = mmattn_command('train', 'none.py')
    assert process.returncode == 2 and 'config none.py does not exist' in process.stderr


def test_the_wheel_installs_the_command(tmp_path):
    command = [sys.executable, 'setup.py', '--quiet', 'egg_info', '--egg-base', str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    text = (tmp_path / 'mmattn.egg-info' / 'entry_points.txt').read_text()
    assert text.split() == ['[console_scripts]', 'mmattn', '=', 'mmattn.cli.main:main']


def test_maths_and_blocks_need_no_mmcv():
    code = (
        'import sys, mmattn.ops\n'
        "assert 'mmengine' not in sys.modules\n"
        'import mmattn.blocks\n'
        "print([m for m in sys.modules if m.startswith(('mmcv', 'mmdet', 'mmseg'))])\n"
    )
    process = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == '[]'


BLOCKS = """AFNB APNB BAM CAM CBAM CMPESE ContextBlock CrissCrossAttention DualAttention NonLocal2d PAM
    ResidualAttention SCSE SE SGE SKConv2d ShuffleAttention SimplifiedNonLocal SpatialTransformer"""
NETWORKS = """ANNHead AttentionUNet CCHead CMPESEResNet CMPESEResNetV1c DAHead EfficientNetLite EncoderDecoder
    FasterRCNN GCHead
    GatedResNet GatedResNetV1c
    MaskRCNN NLHead ResidualAttentionNet RetinaNet SKNet SegTTAModel"""
FUNCTIONS = """AttentionBlock PairwiseBlock Predictor from_author from_pretrained insert
    list_blocks list_models load_model push_to_hub record report save_pretrained test train"""


def test_the_public_names_are_these():
    from mmattn.blocks.base import registered_blocks

    names = {'__version__', *BLOCKS.split(), *NETWORKS.split(), *FUNCTIONS.split()}
    assert len(mmattn.__all__) == len(set(mmattn.__all__)) and names <= set(mmattn.__all__)
    assert set(mmattn.__all__) - names <= set(registered_blocks())  # a new block needs no line here
    assert set(mmattn.__all__) <= set(dir(mmattn)) and 'plugins' in dir(mmattn)


def test_the_citation_names_this_version():
    assert f'\nversion: {mmattn.__version__}\n' in (ROOT / 'CITATION.cff').read_text()


def test_every_public_name_exists():
    star = {}
    exec('from mmattn import *', star)
    for name in mmattn.__all__:
        assert getattr(mmattn, name) is star[name]
    assert mmattn.train.__module__ == 'mmattn.engine.train' and callable(mmattn.test)
    for name in set(dir(mmattn)) - set(mmattn.__all__):
        assert getattr(mmattn, name).__name__ == f'mmattn.{name}'
    with pytest.raises(AttributeError, match='mmattn has no attribute CBM'):
        _ = mmattn.CBM


def test_compat_is_content_here_and_names_what_is_missing(monkeypatch):
    assert compat.installation_problem() is None
    monkeypatch.setattr(
        compat,
        'installed_versions',
        lambda: {'onedl-mmcv': '2.3.6', 'mmcv': '2.1.0', 'onedl-mmengine': '1'},
    )
    assert 'onedl-mmcv and mmcv are both installed' in compat.installation_problem()
    monkeypatch.setattr(compat, 'DISTRIBUTIONS', {'mm_nowhere': ('a', 'b')})
    assert compat.installation_problem().startswith(
        'mm_nowhere is not installed. Run: pip install "mmattn[det]"'
    )


@pytest.mark.parametrize(
    'module, run',
    [
        ('safetensors', 'pip install safetensors'),
        ('cv2', 'pip install opencv-python'),
        ('mmseg', 'pip install mmsegmentation'),
        ('mmcv', '--no-cache-dir mmcv==2.1.0'),
        ('tifffile', 'pip install "mmattn[data]"'),
        ('optuna', 'pip install "mmattn[tune]"'),
        ('wandb', 'pip install wandb'),
    ],
)
def test_next_to_the_original_packages_their_forks_are_not_recommended(monkeypatch, module, run):
    monkeypatch.setattr(compat, 'installed_versions', lambda: {'mmdet': '3.3.0'})
    monkeypatch.setattr(compat, 'find_spec', lambda _: None)
    problem = compat.import_problem(ImportError(name=module))
    assert problem.startswith(f'{module} is not installed. Run: ') and problem.endswith(run)


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
