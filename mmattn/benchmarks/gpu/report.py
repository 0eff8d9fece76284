"""Run the parts of the report in a process of their own, with time limits; write what they find."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mmattn
from mmattn.errors import MmattnError, UsageError, cannot_write

from .parts import PARTS, Part
from .summary import summarize, to_text

REPORT, SUMMARY = 'report.json', 'summary.txt'
_LEAST_SECONDS = 5  # a part that would get less is skipped
_MARGIN = 3  # seconds of its time that a part leaves unused, so as not to be ended
_PACKAGES = Path(mmattn.__file__).resolve().parents[1]

Report = dict[str, Any]


def run_report(
    folder: Path,
    device: str | None = None,
    minutes: float = 8,
    names: Sequence[str] = (),
    parts: Sequence[Part] = PARTS,
) -> Report:
    """Run the parts in turn; after each, write `report.json` and `summary.txt` into the folder.

    A part that raises, hangs or dies is reported as such, and the next one starts.

    Args:
        folder: for the report and a log of each part; made if need be.
        device: 'cpu', 'cuda', 'cuda:1', ...; default: the GPU if there is one.
        minutes: limit for all parts together; parts that it leaves no time are skipped.
        names: names of the parts to run; default: all.
        parts: all parts.

    Returns:
        what `report.json` has: `mmattn`, `device`, `small`, `seconds`, `parts` (name -> status,
        seconds, limit, error, rows) and `summary`.

    Raises:
        UsageError: an unknown part, or a device that is not there.
        WriteError: the folder cannot be written.
        MmattnError: at the end, if a check failed or a part did not finish.
    """
    device = find_device(device)
    unknown = sorted(set(names) - {part.name for part in parts})
    if unknown:
        known = ', '.join(part.name for part in parts)
        raise UsageError(f'there is no part {unknown[0]!r}. There are: {known}.')
    selected = [part for part in parts if not names or part.name in names]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, 'Choose another --out.') from error
    report = dict(mmattn=mmattn.__version__, device=device, small=device == 'cpu', seconds=0.0)
    report |= dict(parts={}, summary={})
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, _Workers(device, Path(scratch)) as workers:
        for part in selected:
            left = 60 * minutes - (time.monotonic() - start)
            report['parts'][part.name] = result = workers.run(part, folder, left)
            report['seconds'] = round(time.monotonic() - start, 1)
            _write(folder, report)
            note = f': {result["error"]}' if result['error'] else ''
            count = len(result['rows'])
            print(
                f'{part.name:22s} {result["status"]:9s} {result["seconds"]:6.1f} s, '
                f'{count} rows{note}'
            )
    print('\n' + to_text(report), end='')
    bad = report['summary']['wrong'] + report['summary']['unfinished']
    if bad:
        raise MmattnError(
            f'{len(report["summary"]["wrong"])} checks failed and '
            f'{len(report["summary"]["unfinished"])} parts did not finish on {device}, see '
            f'{folder / SUMMARY}.',
            bad,
        )
    return report


def find_device(name: str | None) -> str:
    """The device, checked to exist; the first GPU if there is one, else the CPU, if None.

    Raises:
        UsageError: it does not exist.
    """
    count = torch.cuda.device_count()
    if name is None:
        return 'cuda:0' if count else 'cpu'
    kind, _, index = name.partition(':')
    if name != 'cpu' and (kind != 'cuda' or not (index.isdecimal() or name == 'cuda')):
        raise UsageError(f'--device {name}: allowed are cpu, cuda, cuda:0, cuda:1, ...')
    if name != 'cpu' and int(index or 0) >= count:
        raise UsageError(f'--device {name}: torch sees {count} GPUs. Use --device cpu.')
    return 'cuda:0' if name == 'cuda' else name


class _Workers:
    """Runs parts in a process of their own, which a part that fails or hangs takes with it.

    Args:
        device: torch device.
        scratch: folder for rows and for caches of compiled kernels, empty at first, so that
            compile times are those of a new machine.
    """

    def __init__(self, device: str, scratch: Path) -> None:
        self.device, self.scratch = device, scratch
        self.process: subprocess.Popen | None = None
        paths = [str(_PACKAGES), *filter(None, [os.environ.get('PYTHONPATH')])]
        self.environment = dict(
            os.environ,
            PYTHONPATH=os.pathsep.join(paths),
            TRITON_CACHE_DIR=str(scratch / 'triton'),
            TORCHINDUCTOR_CACHE_DIR=str(scratch / 'inductor'),
            TRITON_INTERPRET=str(int(device == 'cpu')),
        )

    def __enter__(self) -> '_Workers':
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def run(self, part: Part, folder: Path, left: float) -> dict[str, Any]:
        """Run a part for at most its limit, or `left` seconds: its status, error and rows."""
        start, limit = time.monotonic(), min(part.seconds, left)
        rows, log = self.scratch / f'{part.name}.jsonl', folder / f'{part.name}.log'
        status, error = 'ok', None
        if left < _LEAST_SECONDS:
            status, error = 'skipped', 'no time left'
        else:
            options = dict(function=part.function, device=self.device, rows=str(rows))
            options |= dict(log=str(log.resolve()), seconds=max(limit - _MARGIN, 0))
            answer = self._ask(json.dumps(options), limit)
            if answer is None:
                status, error = 'timed out', f'after {limit:.0f} s'
            elif answer != 'ok':
                status = 'failed'
        found = _read_rows(rows)
        if status == 'timed out':
            self._end()
        elif status == 'failed':
            # a process that closed its output is about to end by itself
            error = _failure(found, log, self._end(wait=0 if answer else 5))
        found = [row for row in found if row['kind'] != 'failure']
        spent = round(time.monotonic() - start, 1)
        return dict(status=status, seconds=spent, limit=round(limit), error=error, rows=found)

    def _ask(self, line: str, seconds: float) -> str | None:
        """The answer of the process to a line, '' if it died; None if it took too long."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'mmattn.benchmarks.gpu.worker'],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self.environment,
                start_new_session=True,  # with whatever it starts, to be ended together
            )
        try:
            self.process.stdin.write(line + '\n')
            self.process.stdin.flush()
        except BrokenPipeError:
            return ''
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return None
        return self.process.stdout.readline().strip()

    def _end(self, wait: float = 0) -> int | None:
        """End the process and what it started; its exit code if it ended by itself in time."""
        if self.process is None:
            return None
        process, self.process = self.process, None
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(wait)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in process.stdin, process.stdout:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        # a process that waits for a broken device may not end at once
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        return code


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows; a last one that was cut off is left out."""
    rows = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding='utf-8').splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def _failure(rows: list[dict[str, Any]], log: Path, code: int | None) -> str:
    """Why a part failed: what it raised, the signal, or the last line that it printed."""
    if rows and rows[-1]['kind'] == 'failure':
        return rows[-1]['error']
    if code is not None and code < 0:
        return f'killed by {signal.Signals(-code).name}'
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding='utf-8', errors='replace').split('\n')
        return next((line for line in reversed(lines) if line.strip()), f'exit code {code}')
    return f'exit code {code}'


def _write(folder: Path, report: Report) -> None:
    report['summary'] = summarize(report)
    try:
        for name, text in {
            REPORT: json.dumps(report, indent=1) + '\n',
            SUMMARY: to_text(report),
        }.items():
            part = folder / f'{name}.part'
            part.write_text(text, encoding='utf-8')
            part.replace(folder / name)
    except OSError as error:
        raise cannot_write(folder / name, error, 'Choose another --out.') from error
