"""The tables of a benchmark."""

from collections.abc import Iterable, Iterator

from .cases import COMPILED, TARGETS
from .compare import CURVE, MAX_POINT_SECONDS, Cell, Curve, Row, format_size
from .results import Results

_UNITS = dict(forward=1, step=1, saved=1e6, peak=1e6)
_TIMES, _BYTES = ('forward', 'step'), ('saved', 'peak')
_MAX_DEVIATION = 0.05  # of a ratio between two runs
LEGEND = (
    'Ratios are the best baseline over the best of ours: each the shorter time of eager and '
    'compiled (c), in one layout\n'
    'or, in the line "best", in either. Times are medians of rounds, and so are their ratios; '
    'after these the range of\n'
    'the middle half of the rounds, and the baseline.\n'
    '*: the operations of the authors, restated on our weights.'
)
_HEAD = 30  # width of names in the table


def table_header() -> str:
    times = ''.join(
        f'{name + " ms":>10} {"x":>6} {"rounds":>10} {"":<9}' for name in ('fwd', 'step')
    )
    return f'{"":<35}{times}{"saved MB":>9} {"x":>6}{"peak MB":>8} {"x":>5}'


def table_lines(row: Row) -> Iterator[str]:
    """A line for each layout and one for the best of both, then targets and what is missing."""
    heads = [row.name, f'  {format_size(row.size)}', '']
    layouts = row.layouts if len(row.layouts) == 1 else [*row.layouts, None]
    if row.estimate:
        heads[len(layouts) - 1] += f'  estimate {_number(row.estimate)} ms'
    for head, layout in zip(heads, layouts, strict=False):
        times = ''.join(_time_cells(row, measure, layout) for measure in _TIMES)
        saved = _ratio_cells(row, 'saved', layout, 9, 6)
        peak = _ratio_cells(row, 'peak', layout, 8, 5)
        if len(head) >= _HEAD:
            yield head
            head = ''
        yield f'{head:<{_HEAD}}{layout or "best":<5}{times}{saved}{peak}'.rstrip()
    for cell in row.cells:
        for reason in dict.fromkeys(cell.unsupported.values()):
            measures = ', '.join(m for m, why in cell.unsupported.items() if why == reason)
            yield f'  {cell.owner} cannot ({measures}; {cell.layout}, {cell.mode}): {reason}'[:140]
    for name in dict.fromkeys(cell.owner for cell in row.cells if not cell.comparable):
        others = [cell for cell in row.cells if cell.owner == name]
        yield f'  {name}, which does other work: {_other_work(others)}'
    for baseline, names in row.unpaired.items():
        yield f'  {baseline} has no such parameter, not compared: {", ".join(names)}'


def _time_cells(row: Row, measure: str, layout: str | None) -> str:
    ours, theirs = (row.best(side, measure, layout) for side in (True, False))
    figure = f'{_number(ours.figure(measure))}{_mark(ours)}' if ours else '- '
    spread = row.spread(measure, layout)
    between = f'{spread[0]:.2f}-{spread[1]:.2f}' if spread else ''
    name = f'{theirs.owner}{_mark(theirs).strip()}' if theirs else ''
    return f'{figure:>10} {_ratio(row.ratio(measure, layout)):>6} {between:>10} {name:<9}'


def _ratio_cells(row: Row, measure: str, layout: str | None, width: int, ratio_width: int) -> str:
    ours = row.best(True, measure, layout)
    value = ours and ours.figure(measure) / _UNITS[measure]
    return f'{_number(value):>{width}} {_ratio(row.ratio(measure, layout)):>{ratio_width}}'


def _mark(cell: Cell) -> str:
    return 'c' if cell.mode == COMPILED else ' '


def _other_work(cells: list[Cell]) -> str:
    found = {}
    for measure in _TIMES:
        values = [cell.figure(measure) for cell in cells if cell.figure(measure) is not None]
        if values:
            found[measure] = f'{measure} {_number(min(values))} ms'
    return ', '.join(found.values()) or '-'


def summary(rows: Iterable[Row]) -> Iterator[str]:
    """How many targets were met, each with its ratio and range, and how long compilation took."""
    rows = list(rows)
    targets = [(row, target) for row in rows for target in row.targets]
    found = [(row, target, row.met(target)) for row, target in targets]
    if targets:
        met = sum(bool(ok) for _, _, ok in found)
        yield f'{met} of {len(targets)} targets met'
    for row, target, ok in found:
        special = target in TARGETS.get(row.name, ())
        if special or not ok:
            word = 'met' if ok else 'missed' if ok is not None else 'not measured'
            ratio = _ratio(row.ratio(target.measure, target.layout, target.mode))
            spread = row.spread(target.measure, target.layout, target.mode)
            between = f' ({spread[0]:.2f} to {spread[1]:.2f})' if spread else ''
            yield f'  {word}: {row.name}, {target}: {ratio}{between}, target {target.ratio:.3g}'
    yield from _compilation(rows)


def _compilation(rows: list[Row]) -> Iterator[str]:
    sides = {}
    for row in rows:
        for cell in row.cells:
            seconds = cell.compile_seconds.values()
            sides.setdefault('ours' if cell.owner == 'ours' else 'baselines', []).extend(seconds)
    shown = [
        f'{side} {sum(values):.0f} s for {len(values)} graphs'
        for side, values in sides.items()
        if values
    ]
    if shown:
        yield f'compilation, not in the times: {", ".join(shown)}'


def deviations(results: Results, earlier: Results) -> Iterator[str]:
    """How far the ratios of the rows with targets of their own are from those of another run."""
    largest, count = 0.0, 0
    for row in results.rows:
        other = earlier.find(row.key)
        for target in row.targets if other else ():
            if target not in TARGETS.get(row.name, ()):
                continue
            place = target.measure, target.layout, target.mode
            now, before = row.ratio(*place), other.ratio(*place)
            if not (now and before):
                continue
            count, deviation = count + 1, now / before - 1
            largest = max(largest, abs(deviation))
            if abs(deviation) > _MAX_DEVIATION:
                yield f'  {row.name}, {target}: {before:.2f} then, {now:.2f} now ({deviation:+.0%})'
    differ = f'differ by at most {largest:.1%}' if count else 'to compare'
    yield f'{earlier.path}: {count} ratios with targets of their own {differ}'


def curve_lines(curve: Curve) -> Iterator[str]:
    """The points of a curve as a table, and why one ends before the largest size."""
    sides = dict(ours=curve.ours) | {curve.baseline: curve.theirs}
    headings = ''.join(f'{name + " step ms":>18}{"saved MB":>10}' for name in sides)
    yield f'{curve.name + " by pixels":<46}{headings}'
    for pixels in (h * w for h, w in CURVE):
        points = (
            side[measure].get(pixels) for side in sides.values() for measure in ('step', 'saved')
        )
        values = (point and point / unit for point, unit in zip(points, 2 * (1, 1e6), strict=True))
        yield f'{pixels:>46}{{:>18}}{{:>10}}{{:>18}}{{:>10}}'.format(*map(_number, values))
    for measure, (pixels, reason) in curve.refused.items():
        yield f'  {curve.baseline} cannot ({measure}) from {pixels} on: {reason}'
    for name, side in sides.items():
        for measure, points in side.items():
            refused = name == curve.baseline and measure in curve.refused
            if len(points) < len(CURVE) and not refused:
                last = max(points)
                yield f'  {name} ({measure}) ends at {last}, which took over {MAX_POINT_SECONDS} s'


def cell(pair: tuple[float | None, float | None], width: int = 12, ratio_width: int = 7) -> str:
    """Our figure, and the ratio of the baseline's to it."""
    ours, theirs = pair
    ratio = f'{theirs / ours:.2f}' if theirs and ours else '-'
    return f'{_number(ours):>{width}}{ratio:>{ratio_width}}'


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.1f}' if value >= 10 else f'{value:.2f}'


def _ratio(value: float | None) -> str:
    return '-' if value is None else f'{value:.0f}' if value >= 1000 else f'{value:.2f}'
