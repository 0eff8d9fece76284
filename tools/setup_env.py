"""Create .venv with everything mmattn needs, including the compiled operators of mmcv.

Run it as `make setup`. It can be interrupted and run again, does only what is still missing, and
caches the compiled mmcv, so that one machine compiles it once per version.

Environment:
  PYTHON          (make) interpreter for .venv, 3.11 or 3.12
  XDG_CACHE_HOME  folder for the compiled mmcv, default ~/.cache
  MAX_JOBS        compiler processes for mmcv, default one per core and 2 GB of memory
"""

import contextlib
import hashlib
import os
import platform
import re
import select
import shutil
import subprocess
import sys
import sysconfig
import time
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
BIN = VENV / ('Scripts' if os.name == 'nt' else 'bin')
PYTHON = BIN / 'python'
LOG = VENV / 'setup.log'
STAMP = VENV / 'setup.sha256'
REQUIREMENTS = ROOT / 'requirements'
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmattn' / 'wheels'

DISK_GB = 5  # .venv of the CPU build is 2.0 GB (du -sh); the rest is room for the mmcv build
TORCH_CPU_INDEX = 'https://download.pytorch.org/whl/cpu'
# An operator of the compiled extension on an input with a known result: of two boxes that overlap
# by 81/119 only the one with the higher score remains.
OPERATOR_CHECK = """
import torch
from mmcv.ops import nms
boxes = torch.tensor([[0., 0., 10., 10.], [1., 1., 11., 11.], [20., 20., 30., 30.]])
assert nms(boxes, torch.tensor([.9, .8, .7]), 0.5)[1].tolist() == [0, 2]
"""


def fail(sentence: str, code: int = 2) -> None:
    raise SystemExit(_Failure(sentence, code))


class _Failure(str):
    """Message of a failure, with the exit code for the script."""

    def __new__(cls, sentence: str, code: int) -> '_Failure':
        self = super().__new__(cls, sentence)
        self.code = code
        return self


def echo(text: str) -> None:
    print(text, flush=True)


class Ticker:
    """One line of progress: redrawn on a terminal, printed every 15 s elsewhere."""

    def __init__(self, title: str, usual: str) -> None:
        self.title, self.usual = title, usual
        self.tty = sys.stdout.isatty()
        self.start = self.shown = time.monotonic()
        echo(f'{title} (usually {usual})')

    def update(self, text: str) -> None:
        now = time.monotonic()
        if now - self.shown < (0.2 if self.tty else 15):
            return
        self.shown = now
        minutes, seconds = divmod(int(now - self.start), 60)
        line = f'    {minutes}:{seconds:02d}  {text}'[:100]
        if self.tty:
            print(f'\r\033[K{line}', end='', flush=True)
        else:
            echo(line)

    def done(self) -> None:
        clear = '\r\033[K' if self.tty else ''
        echo(f'{clear}    done in {time.monotonic() - self.start:.0f} s')


def progress(line: str) -> str:
    """Progress in a line of output of pip or ninja; '' if there is none."""
    step = re.search(r'\[(\d+)/(\d+)\]', line)  # ninja writes [12/87] before each object
    if step:
        return f'{step.group(1)} of {step.group(2)} files compiled'
    match = re.match(r'\s*(Collecting|Downloading|Using|Installing|Building) .*', line)
    return match.group().strip() if match else ''


def run(
    title: str,
    usual: str,
    command: list,
    env: dict | None = None,
    hint: str = '',
    check: bool = True,
) -> bool:
    """Run a command; its output goes to the log, its progress to one line."""
    ticker = Ticker(title, usual)
    last = ''
    with open(LOG, 'ab', buffering=0) as log:
        log.write(f'\n$ {" ".join(map(str, command))}\n'.encode())
        process = subprocess.Popen(
            [str(c) for c in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, 'PYTHONUNBUFFERED': '1', **(env or {})},
        )
        output = process.stdout.fileno()
        rest = ''
        try:
            while True:
                if select.select([output], [], [], 0.2)[0]:
                    chunk = os.read(output, 65536)
                    if not chunk:
                        break
                    log.write(chunk)
                    *lines, rest = (rest + chunk.decode(errors='replace')).split('\n')
                    last = next(filter(None, map(progress, reversed(lines))), last)
                ticker.update(last)
            process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        if not check:
            return False
        tail = LOG.read_text(encoding='utf-8', errors='replace').splitlines()[-200:]
        errors = [line.strip() for line in tail if re.search(r'(\w*Error|ERROR|error): ', line)]
        cause = errors[-1][:300] if errors else f'exit code {process.returncode}'
        fail(f'{title.strip()} failed: {cause}. {hint}The full output is in {LOG}.', 1)
    ticker.done()
    return True


def fingerprint() -> str:
    """Hash of everything the environment depends on; a change requires a new set-up."""
    digest = hashlib.sha256(f'{sys.version_info[:2]} {ROOT}'.encode())
    for path in [*sorted(REQUIREMENTS.glob('*.txt')), ROOT / 'setup.py', Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def complete() -> bool:
    """Whether .venv has every pinned package, and mmcv its operators; imports nothing."""
    sites = [str(path) for path in VENV.glob('lib/python*/site-packages')]
    installed = {plain(d.metadata['Name']): d.version for d in distributions(path=sites)}
    lines = '\n'.join(path.read_text() for path in REQUIREMENTS.glob('*.txt'))
    # except those with a condition after a semicolon
    pins = re.findall(r'^([\w-]+)==([^\s#;]+)[ ]*(?:#|$)', lines, re.MULTILINE)
    pinned = all(installed.get(plain(name), '').split('+')[0] == version for name, version in pins)
    return pinned and any(VENV.glob('lib/python*/site-packages/mmcv/_ext.*'))


def plain(name: str) -> str:
    """A package name, normalised as by pip."""
    return re.sub('[-_.]+', '-', name).lower()


def succeeds(code: str) -> bool:
    """Whether a piece of code runs in .venv without an error."""
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return PYTHON.exists() and not subprocess.run([str(PYTHON), '-c', code], **quiet).returncode


def ask(code: str) -> str:
    """Output of a piece of code in .venv."""
    return subprocess.check_output([str(PYTHON), '-c', code], text=True).strip()


def pin(name: str) -> str:
    """`name==version` of a package in requirements/*.txt."""
    for path in REQUIREMENTS.glob('*.txt'):
        match = re.search(rf'^{name}==[^\s#]+', path.read_text(), re.MULTILINE)
        if match:
            return match.group()
    raise AssertionError(name)


def check_machine() -> None:
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        fail(
            f'Python {platform.python_version()} at {sys.executable} cannot run the packages of '
            'requirements/dev.txt, which need 3.11 or 3.12. Install one and run: make setup '
            'PYTHON=python3.11'
        )
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < DISK_GB:
        fail(
            f'{ROOT} has {free:.1f} GB free, the set-up needs {DISK_GB} GB. '
            'Free some space and run make setup again.',
            7,
        )


def check_compiler() -> None:
    compiler = os.environ.get('CXX', 'c++')
    if not shutil.which(compiler):
        fail(
            f'no C++ compiler: {compiler} is not on PATH, and mmcv has to be compiled once. '
            'Install one (Debian, Ubuntu: apt-get install g++) and run make setup again.'
        )
    header = Path(sysconfig.get_paths()['include']) / 'Python.h'
    if not header.exists():
        fail(
            f'no Python headers: {header} does not exist, and mmcv has to be compiled once. '
            'Install them (Debian, Ubuntu: apt-get install python3-dev) and run make setup again.'
        )


def make_venv() -> None:
    if succeeds('import pip'):
        version = ask('import sys; print(sys.version_info[:2])')
        if version == str(tuple(sys.version_info[:2])):
            return
        echo(f'    .venv has Python {version}, creating it again')
    shutil.rmtree(VENV, ignore_errors=True)
    try:
        subprocess.run([sys.executable, '-m', 'venv', str(VENV)], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        fail(
            f'{sys.executable} cannot create a virtual environment: its venv or ensurepip is '
            'missing. Install it (Debian, Ubuntu: apt-get install python3-venv) and run make setup '
            'again.'
        )


def pip(*args: str) -> list:
    return [PYTHON, '-m', 'pip', '--disable-pip-version-check', *args]


def torch_index() -> list:
    """The small CPU build where there is no GPU; a custom index of pip is respected."""
    if shutil.which('nvidia-smi') or sys.platform != 'linux':
        return []
    settings = subprocess.run(
        [str(c) for c in pip('config', 'list')], capture_output=True, text=True
    ).stdout
    if re.search(r'index-url|find-links', settings):
        return []
    return ['--extra-index-url', TORCH_CPU_INDEX]


def mmcv_wheel(requirement: str) -> Path:
    """The compiled mmcv for this Python and torch, compiled unless it is cached.

    Args:
        requirement: `onedl-mmcv==VERSION` or `mmcv==VERSION`.
    """
    torch = ask('import torch; print(torch.__version__)')
    key = f'{requirement}-torch{torch}-{sysconfig.get_platform()}'.replace('==', '-')
    python = f'cp{sys.version_info[0]}{sys.version_info[1]}'
    store = CACHE / key
    wheels = sorted(store.glob(f'*-{python}-{python}-*.whl'))
    if wheels:
        return wheels[0]
    check_compiler()
    memory_gb = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9
    jobs = os.environ.get('MAX_JOBS') or max(1, min(os.cpu_count() or 1, int(memory_gb // 2)))
    part = store / f'part-{os.getpid()}'
    # without debug information, which takes two thirds of the time; some releases of setuptools
    # replace Python's own flags by these, others append them
    flags = f'-O3 -DNDEBUG -fwrapv -g0 {os.environ.get("CFLAGS", "")}'.strip()
    command = pip('wheel', '-v', '--no-build-isolation', '--no-deps', '-w', part, requirement)
    try:
        for _source in 'pip cache', 'source':
            run(
                f'  compiling {requirement} with {jobs} processes',
                '4 to 13 minutes on 2 cores, seconds where pip has it cached',
                command,
                env={'MAX_JOBS': str(jobs), 'MMCV_WITH_OPS': '1', 'CFLAGS': flags},
                hint='Run it again; with little memory, with MAX_JOBS=1 before it. ',
            )
            (wheel,) = part.glob('*.whl')
            if python in wheel.name:
                break
            # the wheel in pip's cache was built without torch, hence without operators
            forget(requirement)
            wheel.unlink()
        else:
            fail(f'mmcv was built without its operators, see {LOG}.', 1)
        store.mkdir(parents=True, exist_ok=True)
        return wheel.replace(store / wheel.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def forget(requirement: str) -> None:
    """Remove a wheel from pip's cache."""
    name = requirement.partition('==')[0].replace('-', '_')
    subprocess.run([str(c) for c in pip('cache', 'remove', name)], check=False)


def install_mmcv(requirement: str, pinned: list) -> None:
    if succeeds(OPERATOR_CHECK):
        return
    wheel = mmcv_wheel(requirement)
    run(f'  installing {wheel.name}', '5 s', pip('install', *pinned, wheel))
    if succeeds(OPERATOR_CHECK):
        return
    # The wheel was compiled against another torch: pip's cache cannot tell them apart.
    echo('    its operators do not run with this torch: compiling it again')
    wheel.unlink()
    forget(requirement)
    wheel = mmcv_wheel(requirement)
    reinstall = pip('install', '--no-deps', '--force-reinstall', wheel)
    run(f'  installing {wheel.name}', '5 s', reinstall)
    if not succeeds(OPERATOR_CHECK):
        fail(
            "mmcv's compiled operators do not run: "
            f'see the error of {PYTHON} -c "import mmcv.ops", and {LOG}.',
            1,
        )


def main() -> int:
    start = time.monotonic()
    with contextlib.suppress(OSError):
        if STAMP.read_text() == fingerprint() and complete():
            echo(f'set-up: nothing to do, {VENV.name} is complete')
            return 0
    check_machine()
    echo('set-up: .venv with torch, the OpenMMLab packages and mmattn (log: .venv/setup.log)')
    make_venv()
    pinned = [a for f in sorted(REQUIREMENTS.glob('*.txt')) for a in ('-c', f) if f.stem != 'mmcv']
    build = ['-r', REQUIREMENTS / 'build.txt']
    run('  torch and build tools', '1 to 3 minutes', pip('install', *build, *torch_index()))
    names = ['onedl', 'runtime', 'dev', 'docs']
    rest = [a for name in names for a in ('-r', REQUIREMENTS / f'{name}.txt')]
    run('  OpenMMLab packages, test tools', '1 to 2 minutes', pip('install', *pinned, *rest))
    alone = pip('install', '--no-deps', '-r', REQUIREMENTS / 'nodeps.txt')
    run('  grad-cam, timm', '10 s', alone)
    install_mmcv(pin('onedl-mmcv'), pinned)
    editable = pip('install', '--no-deps', '--no-build-isolation', '-e', ROOT)
    run('  mmattn, editable', '5 s', editable)
    echo('  checking the compiled operators of mmcv and the imports')
    # the packages above may have replaced the torch that it was compiled against
    if not succeeds(OPERATOR_CHECK):
        fail(
            f"mmcv's compiled operators no longer run, see {LOG}. Remove .venv and run make setup.",
            1,
        )
    if not succeeds('import mmengine, mmcv, mmdet, mmseg, mmattn'):
        fail(f'the packages do not import together. Remove {VENV} and run make setup again.', 1)
    STAMP.write_text(fingerprint())
    echo(f'set-up: done in {time.monotonic() - start:.0f} s')
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except SystemExit as stop:
        if isinstance(stop.code, _Failure):
            print(f'error: {stop.code}', file=sys.stderr)
            sys.exit(stop.code.code)
        raise
    except KeyboardInterrupt:
        print('\nset-up interrupted; run make setup again to continue', file=sys.stderr)
        sys.exit(130)
