"""The benchmark as a table, a JSON file and a picture: every block beside its peers."""

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from mmattn.errors import UsageError
from mmattn.files import check_writable
from mmattn.progress import stages

from .cases import MEASURES, Case, Size, select
from .compare import CURVE, SECONDS, SLOW, Curve, Row, Say, curve, measure, written
from .plot import FORMATS, MOST, plot_benchmark
from .timing import CPU, DTYPES, Unequal, find_device, give_back, machine

# what --plot draws without a pattern
_CURVES = ('NonLocal2d embedded_gaussian', 'CrissCrossAttention 1', 'APNB', 'ContextBlock')
_HEADS = dict(forward='fwd ms', step='step ms', kept='kept MB', peak='peak MB')
_UNITS = dict(forward=1, step=1, kept=1e6, peak=1e6)


def report(
    pattern: str = '*',
    size: Size | None = None,
    rounds: int = 7,
    json_path: str | Path | None = None,
    *,
    device: str = 'cpu',
    dtype: str = 'fp32',
    plot_path: str | Path | None = None,
) -> list[Row]:
    """Measure, print a line a block and peer as it comes, write all to files if asked.

    Args:
        pattern: what to measure, see `select`.
        size: (N, C, H, W) of everything; each case has its own if None.
        rounds: as of `measure`.
        json_path: a file for the figures.
        device: 'cpu', with one thread, or 'cuda', 'cuda:1', ..., without TF32.
        dtype: of `DTYPES`.
        plot_path: a picture of time and memory by size, see `plot_benchmark`.

    Raises:
        UsageError: a size or number of rounds below 1; a device that is not there; no name fits.
        Unequal: after all others were measured.
        WriteError: a file cannot be written.
    """
    if min(*(size or (1,)), rounds) < 1:
        raise UsageError(f'--size {size} --rounds {rounds}: allowed are numbers from 1.')
    where, kind = find_device(device), DTYPES[dtype]
    chosen = select(pattern, size is not None, where, kind)
    plotted = _plotted(chosen, pattern, plot_path) if plot_path else []
    for path, flag in (json_path, '--json'), (plot_path, '--plot'):
        if path:
            check_writable(Path(path).parent, flag)
    torch.set_num_threads(1)
    if where != CPU:
        torch.cuda.set_device(where)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    about = machine(where, kind)
    print(', '.join(f'{key} {value}' for key, value in about.items()))
    print(f'{device}, {dtype}, least of {rounds} rounds, fewer where they take over {SECONDS} s')
    print('x: peer over ours, the target below it; floor: the least time of the forward pass')
    rows, curves, unequal, last = [], [], [], None

    def keep() -> None:
        """Write what there is: a peer may ask for so much that the system ends the process."""
        if json_path:
            content = dict(machine=about, device=device, dtype=dtype, size=size, rounds=rounds)
            content |= dict(rows=[asdict(r) for r in rows], curves=[asdict(c) for c in curves])
            Path(json_path).write_text(json.dumps(content, indent=1), encoding='utf-8')

    with stages() as say:
        for case in plotted:  # first: the largest peers need all the memory there is
            try:
                curves.append(curve(case, size or case.size, where, kind, say))
            except Unequal as error:
                unequal.append(error)
                continue
            say('')
            print(*curve_lines(curves[-1]), sep='\n')
            keep()
        if curves:
            plot_benchmark(curves, _title(about, where, dtype), plot_path)
        print(_head())
        for index, case in enumerate(chosen, 1):
            told = functools.partial(_numbered, say, f'{index} of {len(chosen)}')
            give_back()
            try:
                new = measure(case, size, where, kind, rounds, about, told)
            except Unequal as error:
                unequal.append(error)
                new = []
            say('')
            if new and new[0].size != last:
                last = new[0].size
                print(written(last))
            for row in new:
                print(*lines(row), sep='\n')
            rows += new
            keep()
        print(*summary(rows), *(f'not timed: {error}' for error in unequal), sep='\n')
    if unequal:
        raise unequal[0]
    return rows


def _head() -> str:
    columns = ''.join(f'{name:>8}{"x":>8}' for name in _HEADS.values())
    return f'{"block":<37}{"peer":<9}{columns}{"floor ms":>9}{"ours/":>7}{"peer/":>7}{"rounds":>7}'


def _title(about: dict, device: torch.device, dtype: str) -> str:
    cpu = f'CPU {about["cpu"]}, {about["threads"]} thread'
    name = cpu if device == CPU else f'GPU {about["gpu"]}'
    return f'{name}, {dtype}, malloc {about["malloc"]}, torch {about["torch"]}'


def _plotted(chosen: list[Case], pattern: str, path: str | Path) -> list[Case]:
    """The cases that get a curve: of the pattern, else four that stand for their kinds."""
    if Path(path).suffix.lower() not in FORMATS:
        raise UsageError(f'--plot {path}: allowed are names that end in {", ".join(FORMATS)}.')
    able = [case for case in chosen if not case.fixed]
    if pattern == '*':
        able = [case for case in able if case.name in _CURVES]
    if not 1 <= len(able) <= MOST:
        raise UsageError(f'--plot: {len(able)} blocks fit the pattern, allowed 1 to {MOST}.')
    return able


def _numbered(say: Say, number: str, text: str) -> None:
    say(f'[{number}] {text}')


def lines(row: Row) -> Iterator[str]:
    """A row of the table; below it targets under the ratios, and why the peer cannot."""
    pairs = [(row.ours[what], row.theirs[what], _UNITS[what]) for what in MEASURES]
    cells = ''.join(
        cell((ours and ours / u, theirs and theirs / u), 8, 8) for ours, theirs, u in pairs
    )
    above = [
        t['forward'] / row.floor if t['forward'] and row.floor else None
        for t in (row.ours, row.theirs)
    ]
    floors = f'{_number(row.floor):>9}' + ''.join(f'{_number(value):>7}' for value in above)
    rounds = '/'.join(map(str, row.rounds.values()))
    yield f'{row.name:<37}{row.peer:<9}{cells}{floors}{rounds:>7}'.rstrip()
    if row.targets:
        cells = ''.join(f'{_aim(row, what):>16}' for what in (*MEASURES, 'floor'))
        yield f'{"  target":<46}{cells}'.rstrip()
    for why in dict.fromkeys(row.cannot.values()):
        what = ', '.join(name for name, reason in row.cannot.items() if reason == why)
        yield f'  {row.peer} cannot ({what}): {why}'


def summary(rows: list[Row]) -> Iterator[str]:
    """How many targets were met, and which were not."""
    aims = [(row, what) for row in rows for what in row.targets]
    missed = [(row, what) for row, what in aims if not row.met(what)]
    if aims:
        yield f'{len(aims) - len(missed)} of {len(aims)} targets met'
    for row, what in missed:
        yield f'  missed: {row.name} {what} {_number(row.ratio(what))}, aim {_aim(row, what)}'


def _aim(row: Row, what: str) -> str:
    if what not in row.targets:
        return ''
    sign = '<=' if what == 'floor' else '>='
    return f'{sign}{row.targets[what]:.3g} {"ok" if row.met(what) else "no"}'


def curve_lines(found: Curve) -> Iterator[str]:
    """The points of a curve as a table, and why a side ends before the largest size."""
    sides = dict(ours=found.ours) | {found.peer: found.theirs}
    heads = ''.join(f'{name + " step ms":>18}{"kept MB":>10}' for name in sides)
    yield f'{found.name + " by pixels":<46}{heads}'
    for pixels in (h * w for h, w in CURVE):
        points = (side[what].get(pixels) for side in sides.values() for what in ('step', 'kept'))
        values = (point and point / unit for point, unit in zip(points, 2 * (1, 1e6), strict=True))
        yield f'{pixels:>46}{{:>18}}{{:>10}}{{:>18}}{{:>10}}'.format(*map(_number, values))
    for what, (pixels, why) in found.refused.items():
        yield f'  {found.peer} cannot ({what}) from {pixels} on: {why}'
    for name, side in sides.items():
        for what, points in side.items():
            refused = name == found.peer and what in found.refused
            if len(points) < len(CURVE) and not refused:
                yield f'  {name} ({what}) ends at {max(points)}, which took over {SLOW} s'


def cell(pair: tuple[float | None, float | None], width: int = 12, ratio_width: int = 7) -> str:
    """Ours, and how many times as much theirs is."""
    ours, theirs = pair
    ratio = f'{theirs / ours:.2f}' if theirs and ours else '-'
    return f'{_number(ours):>{width}}{ratio:>{ratio_width}}'


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.1f}' if value >= 10 else f'{value:.2f}'
