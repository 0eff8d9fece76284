"""Run the functions of a test file that are named check_* in a child process, with Triton.

There, Triton's interpreter runs the kernels on the CPU: it must be on before Triton is imported.
Where there is a GPU, a second child runs them on it, compiled.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if INTERPRETED or not torch.cuda.is_available() else 'cuda'  # of the checks


def run_checks(path: str, device: str) -> None:
    """Fail where a check of a file fails or is skipped.

    Args:
        path: of the test file.
        device: 'cpu', with the interpreter, or 'cuda'.
    """
    if not importlib.util.find_spec('triton'):
        pytest.skip('needs triton')
    if device == 'cuda' and not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    options = ['-n0', '-q', '--noconftest', '-p', 'no:cacheprovider']
    options += ['-o', 'python_functions=check_*']
    interpret = '1' if device == 'cpu' else '0'
    out = child('-m', 'pytest', *options, path, TRITON_INTERPRET=interpret)
    assert 'passed' in out and 'skipped' not in out


def child(*arguments: str, **environment: str) -> str:
    """What a Python process prints, which must end well."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
