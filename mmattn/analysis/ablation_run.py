"""One run of an ablation: a training and its test, as a command, a folder and metrics."""

import contextlib
import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLAIN = 'none'


@dataclass(frozen=True)
class Run:
    """A training run and its test.

    Attributes:
        attention: 'none', a block, or several with '+' between them.
        seed: seed of the training.
        folder: work dir of the run.
    """

    attention: str
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f'{self.attention}, seed {self.seed}'

    @property
    def log(self) -> Path:
        return self.folder / 'run.log'

    def record(self) -> dict[str, Any] | None:
        """The record of the test: `metrics`, `hardware`, ...; None if the run has not finished."""
        for path in (self.folder / 'metrics').glob('*.json'):
            with contextlib.suppress(ValueError):
                record = json.loads(path.read_text(encoding='utf-8'))
                if 'metrics' in record:
                    return record
        return None

    def metrics(self) -> dict[str, float] | None:
        """Metrics of the test; None if the run has not finished."""
        record = self.record()
        return None if record is None else record['metrics']

    def iteration(self) -> int:
        """Last iteration in the training log; 0 if there is none."""
        files = sorted(self.folder.glob('*/vis_data/scalars.json'))
        if not files:
            return 0
        steps = re.findall(r'"step": (\d+)', files[-1].read_text(encoding='utf-8'))
        return max(map(int, steps), default=0)


def run_command(config: str | Path, options: list[str], run: Run) -> str:
    """Shell command that trains, then tests the last checkpoint."""
    root = Path(__file__).resolve().parents[2]
    flags = ['--attention', run.attention.replace('+', ',')] if run.attention != PLAIN else []
    changes = ['--cfg-options', *options] if options else []
    tools = next(t for t in (root / 'tools', root / 'mmattn' / '.mim' / 'tools') if t.is_dir())
    train, test = ([sys.executable, str(tools / f'{name}.py')] for name in ('train', 'test'))
    common = [str(config), *flags, '--work-dir', str(run.folder)]
    train += [*common, '--seed', str(run.seed), '--no-validate', '--resume', *changes]
    test += [*common, *changes]
    folder = shlex.quote(str(run.folder))
    checkpoint = f'{folder}/"$(basename "$(cat {folder}/last_checkpoint)")"'
    # the checkpoint is the argument after the config
    test_command = f'{shlex.join(test[:3])} {checkpoint} {shlex.join(test[3:])}'
    # with the trap the shell, which gets the signal too, ends only once the training has saved
    return f'trap : TERM; {shlex.join(train)} && {test_command}'


def failure_reason(run: Run, code: int) -> str:
    """The last error in the log of a failed run, or else its exit code."""
    lines = run.log.read_text(encoding='utf-8', errors='replace').splitlines()
    error = next((line for line in reversed(lines) if line.startswith('error: ')), '')
    return f'{error.removeprefix("error: ") or f"exit code {code}"} See {run.log}.'
