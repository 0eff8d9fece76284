"""Test the wheel in environments that others have, each in a virtual environment of its own.

python tests/environments.py core        the oldest torch, numpy, nothing else
python tests/environments.py libraries   torchvision, timm, segmentation_models.pytorch, ultralytics, transformers
python tests/environments.py openmmlab   the original OpenMMLab packages, mmcv compiled

The wheel is built and installed as a user would; the tests run outside the clone, so that they can
import nothing but what is installed. An environment is made anew when its requirements change.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / 'requirements' / 'environments'
TESTS = {  # environment -> what it runs
    'core': (
        # torch brings a release of Triton that our kernels are not compiled by
        '-m', 'not openmmlab', '--ignore-glob=*triton*', 'tests/core', 'tests/ops', 'tests/blocks', 'tests/plugins/test_flops.py',
        'tests/plugins/test_stages.py', 'tests/visualization/test_recording.py', 'tests/zoo/test_authors.py',
    ),
    'libraries': ('tests/core', 'tests/plugins/test_stages.py', 'tests/libraries'),
    'openmmlab': ('tests/openmmlab',),
}  # fmt: skip
COMPILED = {'openmmlab': 'mmcv==2.1.0'}  # environment -> what is compiled with its torch

_spec = importlib.util.spec_from_file_location('setup_env', ROOT / 'tools' / 'setup_env.py')
setup_env = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(setup_env)


class Environment:
    """A virtual environment in the clone, with the packages of one file of requirements.

    Args:
        name: name of the file, without its suffix.
    """

    def __init__(self, name: str) -> None:
        self.name, self.folder = name, ROOT / f'.venv-{name}'
        self.requirements = REQUIREMENTS / f'{name}.txt'
        self.python = self.folder / 'bin' / 'python'
        self.stamp = self.folder / 'requirements.sha256'

    def make(self) -> None:
        """Install the requirements, unless they are there."""
        wanted = f'{sys.version_info[:2]} {self.requirements.read_text()}'
        wanted = hashlib.sha256(wanted.encode()).hexdigest()
        with contextlib.suppress(OSError):
            if self.stamp.read_text() == wanted:
                return
        shutil.rmtree(self.folder, ignore_errors=True)
        subprocess.run([sys.executable, '-m', 'venv', str(self.folder)], check=True)
        self.run(f'installing {self.requirements.name}', '1 to 5 minutes', '-r', self.requirements)
        self.stamp.write_text(wanted)

    def run(self, title: str, usual: str, *arguments: object) -> None:
        """pip install, with its progress in one line."""
        setup_env.LOG = self.folder / 'setup.log'
        install = [self.python, '-m', 'pip', '--disable-pip-version-check', 'install']
        setup_env.run(f'  {title}', usual, [*install, *arguments])

    def call(self, *arguments: object, **options: object) -> None:
        """Run Python here; ends with its exit code if that is not 0."""
        done = subprocess.run([str(a) for a in (self.python, *arguments)], **options)
        if done.returncode:
            sys.exit(done.returncode)


def build_wheel() -> Path:
    """The wheel, as `python -m build` makes it from the source archive, accepted by twine."""
    environment = Environment('build')
    environment.make()
    folder = environment.folder / 'dist'
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(ROOT / 'build', ignore_errors=True)  # its files would be in the wheel
    log = environment.folder / 'build.log'
    setup_env.echo(f'  building the wheel (usually 20 s; log: {log.relative_to(ROOT)})')
    with open(log, 'w') as file:
        logged = dict(cwd=ROOT, stdout=file, stderr=file)
        environment.call('-m', 'build', '--outdir', folder, ROOT, **logged)
        environment.call('-m', 'twine', 'check', '--strict', *sorted(folder.iterdir()), **logged)
    (wheel,) = folder.glob('*.whl')
    return wheel


def test(name: str, arguments: list[str]) -> None:
    """Install the wheel into an environment and run its tests there."""
    setup_env.echo(f'environment: .venv-{name}')
    environment = Environment(name)
    environment.make()
    if name in COMPILED:
        setup_env.PYTHON = environment.python
        setup_env.install_mmcv(COMPILED[name], pinned=[])
    wheel = build_wheel()
    start = time.monotonic()
    environment.run('installing the wheel', '5 s', '--force-reinstall', '--no-deps', wheel)
    environment.run('  what it requires', '2 s', wheel)
    setup_env.echo(f'    the wheel was installed in {time.monotonic() - start:.1f} s')
    folder = environment.folder / 'run'
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns('__pycache__')
    for part in 'tests', 'docs/put_in', 'docs/notebooks':
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    shutil.copy(ROOT / 'docs' / 'coming_from.md', folder / 'docs')
    shutil.copy(ROOT / 'pyproject.toml', folder)
    env = {**os.environ, 'MMATTN_ENVIRONMENT': name}
    environment.call('-m', 'pytest', *(arguments or TESTS[name]), cwd=folder, env=env)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('name', choices=TESTS, help='the environment')
    parser.add_argument('arguments', nargs='*', help='arguments of pytest; default: all its tests')
    args = parser.parse_args()
    test(args.name, args.arguments)
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except SystemExit as stop:
        if isinstance(stop.code, setup_env._Failure):
            print(f'error: {stop.code}', file=sys.stderr)
            sys.exit(stop.code.code)
        raise
